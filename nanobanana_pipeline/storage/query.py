"""SQL over the tables: a DuckDB connection with a view for each, and answers as a person or a program wants them.

Reading only. A query may come from anyone who may look at the results; it can neither write a file nor open one that is
not a table's. What the tables are is in `schemas`.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import io
import re
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.storage import durable
from nanobanana_pipeline.storage.schemas import SCHEMAS
from nanobanana_pipeline.storage.tables import Snapshot, Tables

Format = Literal["table", "csv", "json", "parquet"]

_READING: Final = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI}
# DuckDB counts some statements as MULTI whatever they do with their rows, so the first word is looked at too.
_READING_WORDS: Final = frozenset(
    [
        "select",
        "from",
        "with",
        "values",
        "table",
        "pivot",
        "unpivot",
        "describe",
        "desc",
        "show",
        "summarize",
        "explain",
    ]
)
_GAP: Final = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
# Whatever stands between its words, and no quotes: what `EXPLAIN(ANALYZE)` explains is carried out.
_EXPLAIN: Final = re.compile(rf"{_GAP}explain\b{_GAP}(analyze\b|\([\w\s,]*\))?", re.IGNORECASE | re.DOTALL)
_WORD: Final = re.compile(rf"(?:{_GAP}\()*{_GAP}(\w*)", re.DOTALL)

_SPILL: Final = "nanobanana-query-"
_BATCH_ROWS: Final = 10_000
_ROWS_DRAWN: Final = 1_000
_NARROWEST: Final = 40
_UNBOUNDED: Final = 100_000
# What a spreadsheet takes for the start of a formula, and runs.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_CSV_SPECIAL: Final = re.compile(r'[,"\r\n]')
_CONTROL: Final = dict.fromkeys((*range(32), *range(127, 160))) | {9: " ", 10: "⏎", 13: None}


def connect(output: str | Path) -> duckdb.DuckDBPyConnection:
    """A connection with a view for every table of `output`, as the tables are now; an absent one is empty, but typed.

    It can open no other file, and its settings can't be changed. Times are UTC.
    """
    connection = duckdb.connect()
    tables = Tables(output)
    paths: list[str] = []
    for name in SCHEMAS:
        snapshot = tables.snapshot(name)
        if not snapshot.uris:
            connection.execute(f"CREATE VIEW {_quoted(name)} AS {_empty(snapshot.schema)}")
        elif durable.is_remote(str(output)):
            # DuckDB has no extension for object stores here; Arrow reads them with Delta's own credentials.
            connection.register(name, snapshot.dataset())
        else:
            connection.execute(f"CREATE VIEW {_quoted(name)} AS {_over_files(snapshot)}")
            paths += snapshot.uris
    connection.execute("SET TimeZone = 'UTC'")
    # Made when something has to be spilled, and removed at the end. In a folder that all queries shared, those of
    # another user of the machine could write nothing.
    spill = f"{tempfile.gettempdir()}/{_SPILL}{uuid4().hex}"
    connection.execute(f"SET temp_directory = {_literal(spill)}")
    connection.execute("SET python_enable_replacements = false")
    connection.execute(f"SET allowed_paths = [{', '.join(map(_literal, paths))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def run_query(output: str | Path, sql: str, fmt: Format = "table", limit: int | None = None) -> str | bytes:
    """The answer to one reading statement: text, or bytes for `parquet`; of at most `limit` rows.

    `table` is drawn for a terminal (1,000 rows without a limit), `csv` can be opened in a spreadsheet without running
    formulas, `json` is one array of objects. Raises `UserError` when the statement is wrong or does more than read.
    """
    with _connected(output) as connection:

        def answer() -> str | bytes:
            _check_reads(connection, sql)
            return _WRITERS[fmt](_renamed(connection.sql(sql).to_arrow_reader(_BATCH_ROWS)), limit)

        try:
            return _stoppable(connection, answer)
        except duckdb.IOException:
            raise
        except duckdb.Error as error:
            raise UserError(f"the query failed: {_in_one_line(error)}") from error
        except OSError as error:
            # So Arrow passes on what DuckDB meets when the first rows of the answer are out.
            if str(error).startswith("IO Error"):
                raise duckdb.IOException(str(error)) from error
            raise UserError(f"the query failed: {_in_one_line(error)}") from error
        except (pa.ArrowException, OverflowError) as error:
            # DATE '10000-01-01' and 'infinity' have no form in Python, INTERVAL none in Parquet.
            raise UserError(f"the answer has a value that {fmt} can't hold ({error}): cast it to VARCHAR") from error


@contextmanager
def _connected(output: str | Path) -> Generator[duckdb.DuckDBPyConnection]:
    """`connect`, with what the disk refuses told in one line."""
    try:
        with connect(output) as connection:
            yield connection
    except duckdb.IOException as error:
        if _SPILL in str(error):
            raise UserError(
                f"the query needs more memory than there is, and can't use the disk instead ({_in_one_line(error)}): "
                "set TMPDIR to a folder with room"
            ) from error
        raise UserError(f"a data file can't be read ({_in_one_line(error)}): run `nanobanana repair`") from error


def _stoppable(connection: duckdb.DuckDBPyConnection, work: Callable[[], str | bytes]) -> str | bytes:
    """What `work` gives. A signal that ends the wait for it ends the query, too: DuckDB itself listens to none."""
    with ThreadPoolExecutor(1, thread_name_prefix="query") as pool:
        answer = pool.submit(work)
        try:
            # Not all at once: where another library listens to signals as well (Polars does), a wait without an end is
            # gone on with after one, and Ctrl-C was heard when the query was over.
            while not answer.done():
                wait([answer], timeout=0.1)
            return answer.result()
        finally:
            while not answer.done():
                # More than once: it may just have been about to begin.
                connection.interrupt()
                wait([answer], timeout=0.1)


def _check_reads(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    # COPY could write over the very files that the views read: being allowed to open them is being allowed to write.
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise UserError(f"the query holds {len(statements)} statements: give one that reads, such as SELECT")
    (statement,) = statements
    explained = _EXPLAIN.match(statement.query)
    words = [_first_word(statement.query)] + ([_first_word(statement.query[explained.end() :])] if explained else [])
    if statement.type not in _READING or not _READING_WORDS.issuperset(words):
        raise UserError(f"only reading is allowed here, and {words[-1].upper()} does more: use SELECT")


def _first_word(sql: str) -> str:
    found = _WORD.match(sql)
    return found[1].lower() if found else ""


def _in_one_line(error: duckdb.Error | OSError) -> str:
    # What follows the first paragraph is the statement again, with a caret under the place.
    return " ".join(str(error).partition("\n\nLINE ")[0].split("\n"))


def _over_files(snapshot: Snapshot) -> str:
    columns = ", ".join(_quoted(column) for column in snapshot.schema.names)
    files = ", ".join(map(_literal, snapshot.uris))
    if snapshot.even:
        return f"SELECT {columns} FROM read_parquet([{files}])"  # noqa: S608 - all of it is quoted
    # Files of several versions of the schema: a look into every file, and the empty table for columns that none has.
    gaps_filled = f"{_empty(snapshot.schema)} UNION ALL BY NAME FROM read_parquet([{files}], union_by_name = true)"
    return f"SELECT {columns} FROM ({gaps_filled})"  # noqa: S608


def _empty(schema: pa.Schema) -> str:
    """A query that gives no rows, with the columns and types of `schema`."""
    # DuckDB knows best which of its types is which of Arrow's.
    described = duckdb.arrow(schema.empty_table())
    columns = ", ".join(
        f"CAST(NULL AS {type_}) AS {_quoted(name)}"
        for name, type_ in zip(described.columns, described.types, strict=True)
    )
    return f"SELECT {columns} WHERE false"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _renamed(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The answer with each column name once: of `a, a` the second becomes `a_2`. A join easily gives such."""
    names: list[str] = []
    for name in reader.schema.names:
        number = 1
        while (unique := name if number == 1 else f"{name}_{number}") in names:
            number += 1
        names.append(unique)
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    return pa.RecordBatchReader.from_batches(schema, (batch.rename_columns(names) for batch in reader))


def _batches(reader: pa.RecordBatchReader, limit: int | None) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in reader:
        if left is None:
            yield batch
            continue
        if left <= 0:
            return
        yield batch.slice(0, left)
        left -= batch.num_rows


def _as_json(reader: pa.RecordBatchReader, limit: int | None) -> str:
    rows = [row for batch in _batches(reader, limit) for row in batch.to_pylist()]
    if not rows:
        return "[]\n"
    return "[\n" + ",\n".join(orjson.dumps(row, default=_json_value, option=_JSON).decode() for row in rows) + "\n]\n"


_JSON: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z


def _json_value(value: Any) -> Any:
    if isinstance(value, Decimal):
        # Every digit: as a float, sums of money would lose their last ones.
        return orjson.Fragment(f"{value:f}") if value.is_finite() else None
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _as_csv(reader: pa.RecordBatchReader, limit: int | None) -> str:
    lines = [",".join(map(csv_value, reader.schema.names))]
    for batch in _batches(reader, limit):
        columns = [column.to_pylist() for column in batch.columns]
        lines += (",".join(map(csv_value, row)) for row in zip(*columns, strict=True))
    return "\n".join([*lines, ""])


def csv_value(value: Any) -> str:
    """A value as a field of a CSV file that no spreadsheet takes for a formula."""
    text = _harmless(value) if isinstance(value, str) else _plain(value)
    # By hand, as Python's writer leaves a lone carriage return bare; and an empty text is not the same as null.
    bare = not _CSV_SPECIAL.search(text) and (text or value is None)
    return text if bare else '"' + text.replace('"', '""') + '"'


def _harmless(text: str) -> str:
    """`text` such that no spreadsheet runs it: one that could be a formula gets an apostrophe in front."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def _plain(value: Any) -> str:
    """A value as text: nothing for null, ISO for times, JSON for lists and structures."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ").replace("+00:00", "Z")
    if isinstance(value, dict | list):
        return orjson.dumps(value, default=_json_value, option=_JSON).decode()
    return f"{value:f}" if isinstance(value, Decimal) else value.hex() if isinstance(value, bytes) else str(value)


def _as_table(reader: pa.RecordBatchReader, limit: int | None) -> str:
    shown = _ROWS_DRAWN if limit is None else limit
    # One row more than is shown tells whether there are more.
    rows = [
        row
        for batch in _batches(reader, shown + 1)
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    ]
    console = Console(file=io.StringIO(), width=max(Console().width, _NARROWEST), highlight=False)
    table = _across(reader.schema, rows[:shown])
    fits = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).minimum <= console.width
    for drawn in [table] if fits else _down(reader.schema, rows[:shown]):
        console.print(drawn)
    count = f"first {shown} rows; there are more" if len(rows) > shown else _counted(len(rows))
    return f"{console.file.getvalue()}({count})\n"  # pyright: ignore[reportAttributeAccessIssue]


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _across(schema: pa.Schema, rows: list[tuple[Any, ...]]) -> Table:
    """One table with a line for each row."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for field in schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        name = _visible(field.name)
        table.add_column(
            Text(name), justify="right" if number else "left", overflow="fold", min_width=min(len(name), _NARROWEST)
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _down(schema: pa.Schema, rows: list[tuple[Any, ...]]) -> Iterator[Table]:
    """A small table for each row, with a line for each column: for more columns than a terminal is wide."""
    for number, row in enumerate(rows, 1):
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column(Text(f"row {number}"))
        table.add_column(overflow="fold")
        for name, value in zip(schema.names, row, strict=True):
            table.add_row(Text(_visible(name)), _cell(value))
        yield table


def _cell(value: Any) -> Text:
    return Text("null", style="dim") if value is None else Text(_visible(_plain(value)))


def _visible(text: str) -> str:
    """`text` without what a terminal would obey: prompts and providers' messages are other people's words."""
    return text.translate(_CONTROL)


def _as_parquet(reader: pa.RecordBatchReader, limit: int | None) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, reader.schema, compression="zstd") as writer:
        for batch in _batches(reader, limit):
            writer.write_batch(batch)
    return sink.getvalue()


_WRITERS: Final[dict[Format, Callable[[pa.RecordBatchReader, int | None], str | bytes]]] = {
    "table": _as_table,
    "csv": _as_csv,
    "json": _as_json,
    "parquet": _as_parquet,
}
