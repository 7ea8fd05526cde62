"""What an earlier version wrote is opened by this one: an upgrade must lose no table, and wait for no migration."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.publishing import publish_shard
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.reporting.costs import publish_cost_daily
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline.storage.query import run_query
from nanobanana_pipeline.storage.schemas import SCHEMAS

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(folder.name for folder in DATA.iterdir() if folder.is_dir())
ROWS = {
    "prompts": 6,
    "rejected_prompts": 1,
    "results": 6,
    "images": 4,
    "attempts": 6,
    "cost_daily": 2,
    "reconciliation": 5,
}


@pytest.fixture(params=VERSIONS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    """The output of an earlier version, opened."""
    version = DATA / str(request.param)
    shutil.copytree(version / "tables", tmp_path / "tables")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        ledger.executescript((version / "ledger.sql").read_text())
    ledger.close()
    settings = load_settings(api_key="k", output=str(tmp_path), catalogue=str(tmp_path / "catalogue"))
    with Workspace.open(settings) as workspace:
        yield workspace


def test_every_table_is_read_with_every_column_of_today(written: Workspace) -> None:
    """A column that came since is null in old rows, and a query that names it is no error."""
    for name, rows in ROWS.items():
        table = written.tables.read(name)
        assert table.num_rows == rows, name
        assert table.schema.names[: len(SCHEMAS[name])] == SCHEMAS[name].names
        asked = ", ".join(SCHEMAS[name].names)
        assert run_query(written.output, f"SELECT {asked} FROM {name}", "csv", None)  # noqa: S608 - our own names
    assert written.tables.read("attempts")["plan_hash"].null_count == 6


def test_a_column_keeps_its_name_and_type(written: Workspace) -> None:
    """Policy: columns are added, and neither taken away nor changed; a dashboard of last year goes on to work."""
    for name in ROWS:
        delta = written.tables.open(name)
        assert delta is not None
        for field in pa.schema(delta.schema().to_arrow()):
            assert SCHEMAS[name].field(field.name).type == field.type, f"{name}.{field.name}"


def test_old_tables_are_written_on(written: Workspace) -> None:
    """The next run replaces a shard's rows; every other row stays as it was, and the money with them."""
    before = {name: written.tables.read(name, ["cost_usd"])["cost_usd"].to_pylist() for name in ("results", "attempts")}

    publish_shard(written, "old-000000")
    publish_cost_daily(written)

    for name, costs in before.items():
        after = written.tables.read(name)
        assert sorted(after["cost_usd"].to_pylist()) == sorted(costs)
        delta = written.tables.open(name)
        assert delta is not None
        assert {field.name for field in delta.schema().fields} == set(SCHEMAS[name].names)


def test_an_old_table_that_is_gone_is_made_again(written: Workspace) -> None:
    """`repair` works from the ledger, which is of the earlier version too."""
    shutil.rmtree(written.tables.uri("attempts"))

    mended = mend_tables(written)

    assert [found.table for found in mended.repairs] == ["attempts"]
    assert written.tables.read("attempts").num_rows == 6
    assert written.tables.read("reconciliation").num_rows == 5
