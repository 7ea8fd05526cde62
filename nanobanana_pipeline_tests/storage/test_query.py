"""SQL over the tables: right answers in every format, and no way to do harm."""

import csv
import io
import json
import signal
import tempfile
import threading
import time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.storage import tables as tables_module
from nanobanana_pipeline.storage.query import connect, run_query
from nanobanana_pipeline.storage.schemas import SCHEMAS
from nanobanana_pipeline.storage.tables import Tables
from nanobanana_pipeline_tests.storage.rows import results


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with two shards of results, and no other table. Its name is one that SQL and globs trip over."""
    root = tmp_path / "it's [mine]*"
    tables = Tables(root, simulated=True)
    for shard, count in (("c-000001", 3), ("c-000002", 2)):
        tables.replace("results", results(shard, count), {"shard": shard}, expected_version=tables.version("results"))
    return root


def objects(output: Path, sql: str) -> list[dict[str, Any]]:
    """The answer as JSON objects."""
    return json.loads(run_query(output, sql, "json"), parse_float=Decimal)


def test_the_newest_rows_answer(output: Path) -> None:
    """A connection shows the tables as they are when it is made."""
    assert objects(output, "SELECT shard, count(*) AS n FROM results GROUP BY ALL ORDER BY ALL") == [
        {"shard": "c-000001", "n": 3},
        {"shard": "c-000002", "n": 2},
    ]
    tables = Tables(output)
    version = tables.version("results")
    tables.replace("results", results("c-000001", 1), {"shard": "c-000001"}, expected_version=version)
    assert objects(output, "SELECT count(*) AS n FROM results") == [{"n": 3}]


@pytest.mark.parametrize("name", SCHEMAS)
def test_absent_and_empty_tables_have_their_columns(tmp_path: Path, name: str) -> None:
    """A report written for a full table must run on a new output."""
    with connect(tmp_path) as connection:
        absent = connection.table(name).to_arrow_table().schema
    Tables(tmp_path).ensure(name)
    with connect(tmp_path) as connection:
        empty = connection.table(name)
        assert empty.to_arrow_table().schema.equals(absent)
        assert empty.columns == SCHEMAS[name].names
        types = [str(type_) for type_ in empty.types]
    Tables(tmp_path).append(name, pa.table({SCHEMAS[name].names[0]: pa.nulls(1)}))
    with connect(tmp_path) as connection:
        assert [str(type_) for type_ in connection.table(name).types] == types


def test_money_adds_up_exactly(output: Path) -> None:
    """A float would give 0.33599999999999997."""
    (row,) = objects(output, "SELECT sum(cost_usd) AS total, sum(sample) AS samples FROM results")
    assert row == {"total": Decimal("0.336000"), "samples": 5}
    assert run_query(output, "SELECT sum(cost_usd) FROM results", "csv") == "sum(cost_usd)\n0.336000\n"


def test_older_files_answer_with_nulls(output: Path) -> None:
    """After an upgrade half of the files lack the new columns."""
    older = pa.schema([field for field in SCHEMAS["results"] if field.name not in {"polls", "run_id"}])
    before = results("c-000003", 1).drop(["run_id"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tables_module.SCHEMAS, "results", older)
        Tables(output).append("results", before)
    found = objects(output, "SELECT shard, run_id, polls FROM results WHERE run_id IS NULL")
    assert found == [{"shard": "c-000003", "run_id": None, "polls": None}]
    assert objects(output, "SELECT count(*) AS n FROM results") == [{"n": 6}]


def test_a_table_of_older_files_alone_has_the_new_columns(tmp_path: Path) -> None:
    """Right after an upgrade no file has them, and queries that name them must still run."""
    older = pa.schema([field for field in SCHEMAS["results"] if field.name != "run_id"])
    before = results("a", 1).drop(["run_id"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tables_module.SCHEMAS, "results", older)
        Tables(tmp_path).append("results", before)
    assert objects(tmp_path, "SELECT run_id, shard FROM results") == [{"run_id": None, "shard": "a"}]


def test_json_is_one_array_of_objects(output: Path) -> None:
    """Every value as JSON has it, exactly; what it has no form for as text."""
    sql = """SELECT submitted_at AS at, cost_usd AS cost, NULL AS none, 'nan'::DOUBLE AS nan, [1, 2] AS list,
             {'a': 1.5::DECIMAL(4, 2)} AS struct, MAP {'k': 1} AS map, '\\x01'::BLOB AS blob, DATE '2026-11-22' AS day,
             TIME '10:00' AS time, INTERVAL 1 DAY AS gap, 170141183460469231731687303715884105727::HUGEINT AS huge,
             'ü"\n' AS text FROM results LIMIT 1"""
    (row,) = objects(output, sql)
    assert row["at"] == "2026-11-22T10:00:00.123456Z"
    assert row["cost"] == Decimal("0.067200")
    assert row["none"] is row["nan"] is None
    assert (row["list"], row["struct"]) == ([1, 2], {"a": Decimal("1.50")})
    assert (row["blob"], row["day"], row["text"]) == ("01", "2026-11-22", 'ü"\n')
    assert row["huge"] == 170141183460469231731687303715884105727
    assert run_query(output, "SELECT 1 AS a WHERE false", "json") == "[]\n"


def test_columns_of_one_name_are_told_apart(output: Path) -> None:
    """In a JSON object or a Parquet file the second would take the first one's place."""
    (row,) = objects(output, "SELECT 1 AS a, 2 AS a, 3 AS a_2")
    assert list(row.values()) == [1, 2, 3]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\r=1", "\n=1", "＝1"])  # noqa: RUF001
def test_csv_never_holds_a_formula(output: Path, text: str) -> None:
    """Prompts are other people's words; a spreadsheet would run them."""
    quoted = "'" + text.replace("'", "''") + "'"
    answer = run_query(output, f"SELECT {quoted} AS t, -1 AS n", "csv")
    assert isinstance(answer, str)
    (row,) = csv.DictReader(io.StringIO(answer, newline=""))
    assert row == {"t": "'" + text, "n": "-1"}


def test_csv_comes_back_as_it_was(output: Path) -> None:
    """Commas, quotes and line breaks are common in prompts."""
    answer = run_query(output, "SELECT 'a, \"b\"\nc' AS t, '' AS empty, NULL AS none, true AS yes, [1] AS list", "csv")
    assert isinstance(answer, str)
    assert list(csv.DictReader(io.StringIO(answer, newline=""))) == [
        {"t": 'a, "b"\nc', "empty": "", "none": "", "yes": "true", "list": "[1]"}
    ]


def test_parquet_keeps_types(output: Path) -> None:
    """For the next program: no detour through text."""
    answer = run_query(output, "SELECT shard, cost_usd, submitted_at FROM results", "parquet")
    assert isinstance(answer, bytes)
    table = pq.read_table(pa.BufferReader(answer))
    assert table.num_rows == 5
    assert table.schema.field("cost_usd").type == pa.decimal128(18, 6)


def test_a_table_is_drawn_for_a_terminal(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aligned, counted, and nothing that the terminal would obey."""
    monkeypatch.setenv("COLUMNS", "80")
    answer = run_query(
        output, "SELECT shard, count(*) AS n, e'\\x1b[31mred\\n' AS t FROM results GROUP BY ALL ORDER BY 1"
    )
    assert isinstance(answer, str)
    lines = [line.rstrip() for line in answer.splitlines()]
    assert lines[0].split() == ["shard", "n", "t"]
    assert lines[2].split() == ["c-000001", "3", "[31mred⏎"]
    assert lines[-1] == "(2 rows)"
    assert "\x1b" not in answer


def test_a_wide_table_is_drawn_downwards(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`SELECT * FROM results` has more columns than a terminal has room."""
    monkeypatch.setenv("COLUMNS", "80")
    answer = run_query(output, "SELECT * FROM results ORDER BY item_id LIMIT 2")
    assert isinstance(answer, str)
    assert "row 2" in answer
    assert all(len(line) <= 80 for line in answer.splitlines())
    assert any(line.split()[:2] == ["status", "succeeded"] for line in answer.splitlines())


@pytest.mark.parametrize("fmt", ["table", "csv", "json", "parquet"])
def test_a_limit_holds_in_every_format(output: Path, fmt: Any) -> None:
    """A person who asks for ten rows of a million gets ten."""
    answer = run_query(output, "SELECT i FROM range(100000) t(i)", fmt, limit=2)
    if isinstance(answer, bytes):
        assert pq.read_metadata(pa.BufferReader(answer)).num_rows == 2
    elif fmt == "json":
        assert len(json.loads(answer)) == 2
    elif fmt == "csv":
        assert answer == "i\n0\n1\n"
    else:
        assert "first 2 rows; there are more" in answer


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "-- why\n/* how */ (SELECT 1);",
        "FROM results SELECT count(*)",
        "WITH a AS (SELECT 1) FROM a",
        "PIVOT results ON shard USING count(*)",
        "DESCRIBE results",
        "SHOW TABLES",
        "SUMMARIZE results",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "explain(analyze, format json) (select 1)",
        "VALUES (1)",
        "TABLE results",
    ],
)
def test_every_way_of_reading_is_allowed(output: Path, sql: str) -> None:
    """Analysts write more than SELECT."""
    assert run_query(output, sql, "csv")


HARMFUL = [
    "COPY results TO '{out}/x.csv'",
    "COPY (PIVOT results ON shard USING count(*)) TO '{out}/x.csv'",
    "COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "explain /* x */ analyze\tcopy (select 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN(ANALYZE) COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "explain/**/analyze copy (select 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPLAIN (ANALYZE, FORMAT ')SELECT(') COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "SELECT 1; COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPORT DATABASE '{out}/export'",
    "ATTACH '{out}/x.duckdb'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('https://example.com/x.parquet')",
    "SELECT * FROM enable_logging(level = 'debug', storage = 'file', storage_path = '{out}/log')",
    "CALL enable_logging(level = 'debug', storage = 'file', storage_path = '{out}/log')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "DROP VIEW results",
    "CREATE TABLE x AS SELECT 1",
    "INSERT INTO results DEFAULT VALUES",
    "PREPARE p AS SELECT 1",
]


@pytest.mark.parametrize("sql", HARMFUL)
def test_nothing_but_reading_the_tables_is_possible(output: Path, sql: str) -> None:
    """A query may be pasted from anywhere; it must not be able to ruin the results."""
    file = Tables(output).snapshot("results").uris[0].replace("'", "''")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        run_query(output, sql.format(out=str(output).replace("'", "''"), file=file), "csv")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM results", "nope"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("SELECT error('boom')", "boom"),
        ("SELECT CAST('x' AS INTEGER) FROM results", "Could not convert"),
        ("SELECT CAST(if(i > 500000, 'x', '1') AS INTEGER) FROM range(1000000) t(i)", "Could not convert"),
        ("", "0 statements"),
        ("DROP VIEW results", "DROP"),
    ],
)
def test_mistakes_are_told_in_one_line(output: Path, sql: str, expected: str) -> None:
    """A traceback over a typing mistake is a defect."""
    with pytest.raises(UserError, match=expected) as caught:
        run_query(output, sql, "csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sql", "fmt"),
    [
        ("SELECT DATE '10000-01-01'", "json"),
        ("SELECT 'infinity'::TIMESTAMP", "csv"),
        ("SELECT INTERVAL 1 DAY", "parquet"),
    ],
)
def test_a_value_that_a_format_has_no_form_for_is_told_in_one_line(output: Path, sql: str, fmt: Any) -> None:
    """It ended as a defect of ours, with a traceback to send in."""
    with pytest.raises(UserError, match=f"{fmt} can't hold.*cast it to VARCHAR"):
        run_query(output, sql, fmt)


def test_names_in_the_callers_code_are_not_tables(output: Path) -> None:
    """DuckDB would find Python variables by name, and answer from them."""
    secret = pa.table({"a": [1]})
    with connect(output) as connection, pytest.raises(duckdb.CatalogException):
        connection.sql("SELECT * FROM secret")
    assert secret.num_rows == 1


def test_a_long_query_can_be_stopped(output: Path) -> None:
    """Ctrl-C was not heard before the end of the query, or ended it as a defect of ours.

    Nor where Polars is loaded, which listens to signals as well: after one, a wait without an end goes on.
    """
    assert pl.__version__
    stop = threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    began = time.monotonic()
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        run_query(output, "SELECT count(*) AS n FROM range(5_000_000_000) t(i) WHERE hash(i) % 7 = 3")
    assert time.monotonic() - began < 10


def test_queries_side_by_side_spill_to_folders_of_their_own(output: Path) -> None:
    """The folder was one for all users of a machine: whoever came second could not run a large query."""
    with connect(output) as one, connect(output) as other:
        asked = [connection.sql("SELECT current_setting('temp_directory')").fetchall() for connection in (one, other)]
    assert asked[0] != asked[1]


def test_a_query_that_finds_no_room_says_so(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sent people to `nanobanana repair`, as though a file of the tables were gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no folder"))
    (tmp_path / "no folder").touch()
    small = partial(duckdb.connect, config={"memory_limit": "40MB", "threads": 1})
    monkeypatch.setattr(duckdb, "connect", small)
    with pytest.raises(UserError, match="set TMPDIR to a folder with room"):
        run_query(output, "SELECT hash(i)::VARCHAR AS t FROM range(4000000) r(i) ORDER BY t", "csv", limit=1)


def test_times_are_utc(output: Path) -> None:
    """Days and hours must not depend on where the query runs."""
    assert run_query(output, "SELECT hour(submitted_at) AS h FROM results LIMIT 1", "csv") == "h\n10\n"
