"""Tables of many rows and of many files: a query the way `nanobanana query` goes, beside DuckDB over plain Parquet.

The rows are made up and put into the table `attempts` by the commits that shards make, many to a commit.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from nanobanana_pipeline.storage import delta_log
from nanobanana_pipeline.storage.data_files import DataFiles
from nanobanana_pipeline.storage.query import run_query
from nanobanana_pipeline.storage.schemas import MONEY, SCHEMAS, TIME
from nanobanana_pipeline.storage.tables import Tables
from nanobanana_pipeline_tests.benchmarks.measuring import Section, say, table

_QUERY: Final = (
    "SELECT created_at::date AS day, campaign, sum(cost_usd) AS usd FROM {source} GROUP BY ALL ORDER BY day, campaign"
)
_ROWS_A_FILE: Final = 50_000  # what the upkeep makes of 50 shards
_FILES_A_COMMIT: Final = 200
_SHARD_ROWS: Final = 100
_ROUNDS: Final = 5
_DAY_US: Final = 86_400_000_000


def measure(rows: int, shards: int) -> Section:
    """Seconds of a query over so many rows, and over as many small files as shards, before and after the upkeep."""
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-tables-"))
    try:
        large = _large(folder / "large", rows)
        say(f"  {large}")
        small = _small(folder / "small", shards)
        say(f"  {small}")
    finally:
        shutil.rmtree(folder)
    header = ["table", "files", "`nanobanana query` s", "DuckDB over plain Parquet s", "ratio"]
    listed: list[list[object]] = [
        [f"{rows:,} rows", large["files"], *_compared(large["query_s"], large["plain_s"])],
        [f"{shards:,} shards, as written", small["files"], *_compared(small["query_s"], small["plain_s"])],
        ["the same after `maintain_tables`", small["files_after"], *_compared(small["after_s"], small["plain_s"])],
    ]
    text = (
        "`sum(cost_usd)` by day and campaign over `attempts`; medians of wall time. The plain Parquet is one file for "
        f"each million rows. The upkeep took {small['upkeep_s']:.1f} s.\n\n" + table(header, listed)
    )
    return Section("tables", text, {"large": large, "small": small})


def _compared(query_s: float, plain_s: float) -> list[object]:
    return [f"{query_s:.2f}", f"{plain_s:.2f}", f"{query_s / plain_s:.1f}"]


def _large(folder: Path, rows: int) -> dict[str, Any]:
    files = _write(folder, rows, _ROWS_A_FILE)
    return {"rows": rows, "files": files, "query_s": _query(folder), "plain_s": _plain(folder)}


def _small(folder: Path, shards: int) -> dict[str, Any]:
    files = _write(folder, shards * _SHARD_ROWS, _SHARD_ROWS)
    figures: dict[str, Any] = {"shards": shards, "files": files, "query_s": _query(folder), "plain_s": _plain(folder)}
    began = time.perf_counter()
    Tables(folder).maintain("attempts")
    figures["upkeep_s"] = time.perf_counter() - began
    return figures | {"files_after": len(Tables(folder).snapshot("attempts").uris), "after_s": _query(folder)}


def _write(folder: Path, rows: int, rows_a_file: int) -> int:
    """The same rows as the Delta table, and as plain Parquet beside it; how many files the table has."""
    tables = Tables(folder)
    tables.ensure("attempts")
    schema = SCHEMAS["attempts"].remove_metadata()
    files = DataFiles(tables.uri("attempts"))
    plain = folder / "plain"
    plain.mkdir()
    adds: list[AddAction] = []
    count = 0
    for start in range(0, rows, 1_000_000):
        made = _rows(start, min(1_000_000, rows - start))
        pq.write_table(made, plain / f"{start:09}.parquet", compression="zstd")
        for at in range(0, made.num_rows, rows_a_file):
            adds += files.write(made.slice(at, rows_a_file).to_batches(), schema)
            count += 1
            if len(adds) >= _FILES_A_COMMIT:
                _commit(tables, files, adds)
                adds = []
    if adds:
        _commit(tables, files, adds)
    return count


def _commit(tables: Tables, files: DataFiles, adds: list[AddAction]) -> None:
    # As if of yesterday: the upkeep leaves alone what may still be replaced.
    written = time.time_ns() // 1_000_000 - _DAY_US // 1000
    adds = [AddAction(add.path, add.size, add.partition_values, written, add.data_change, add.stats) for add in adds]
    delta = delta_log.open_table(tables.uri("attempts"))
    if not delta_log.commit(delta, delta_log.Change(files, adds, [])):
        raise SystemExit("a commit was refused that nobody else could have made")
    delta_log.settle(tables.uri("attempts"), delta.version() + 1)


def _rows(start: int, count: int) -> pa.Table:
    numbers = np.arange(start, start + count)
    micros = 45_000 + numbers * 7919 % 106_000
    money = pa.Array.from_buffers(
        MONEY, count, [None, pa.py_buffer(np.stack([micros, np.zeros_like(micros)], axis=1).astype("<i8").tobytes())]
    )
    ids = pa.array(np.char.add("a", numbers.astype(str)))
    values: dict[str, Any] = {
        "attempt_id": ids,
        "item_id": ids,
        "shard": pa.array(np.char.add("bench-", (numbers // _SHARD_ROWS).astype(str))),
        "campaign": pa.DictionaryArray.from_arrays(
            pa.array(numbers % 20, pa.int32()), pa.array([f"campaign {n}" for n in range(20)])
        ).cast(pa.string()),
        "created_at": pa.array(1_761_955_200_000_000 + numbers % 30 * _DAY_US, pa.int64()).cast(TIME),
        "cost_usd": money,
    }
    fixed = {"catalogue": "bench", "state": "stored", "model": "nano_banana_2", "resolution": "1K", "polls": 3}
    arrays = [
        values[field.name]
        if field.name in values
        else pa.repeat(pa.scalar(fixed[field.name], field.type), count)
        if field.name in fixed
        else pa.nulls(count, field.type)
        for field in SCHEMAS["attempts"]
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMAS["attempts"].remove_metadata())


def _query(folder: Path) -> float:
    return _seconds(lambda: run_query(folder, _QUERY.format(source="attempts"), "parquet"))


def _plain(folder: Path) -> float:
    source = f"read_parquet('{folder}/plain/*.parquet')"
    return _seconds(lambda: duckdb.connect().sql(_QUERY.format(source=source)).to_arrow_table())


def _seconds(action: Callable[[], Any]) -> float:
    took: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
