"""Ledgers of earlier versions open, keep what is in them, and become what this version would have made."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database
from nanobanana_pipeline.ledger.ledger import Ledger, Stamp
from nanobanana_pipeline_tests.ledger import books

_VERSION_1 = Path(__file__).parents[1] / "storage" / "data" / "version_0_1" / "ledger.sql"


def _make_version_1(url: str, *rows: str) -> None:
    database = Database(url)
    # A dump of SQLite's, of which PostgreSQL understands the tables and indexes as well.
    made = [each.strip() for each in _VERSION_1.read_text().split(";\n") if each.strip().startswith("CREATE")]
    with database.write() as connection:
        for statement in (*made, *rows):
            connection.exec_driver_sql(statement)
    database.dispose()


def _shape(url: str) -> dict[str, Any]:
    """Tables with their columns, in no order, and indexes."""
    database = Database(url)
    inspector = sa.inspect(database.engine)
    shape = {
        table: (
            {column["name"]: (str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)},
            sorted(str(index["name"]) for index in inspector.get_indexes(table)),
        )
        for table in schema.metadata.tables
    }
    database.dispose()
    return shape


def test_a_ledger_of_version_1_is_brought_up_to_date(ledger_url: str, tmp_path: Path) -> None:
    """What was in it stays, and it looks like one that this version made."""
    _make_version_1(
        ledger_url,
        "INSERT INTO ledger_meta VALUES ('schema_version', '1'), ('mode', 'live'), ('origin', 'https://example.test')",
        "INSERT INTO catalogues (catalogue, next_position) VALUES ('cat', 1)",
        "INSERT INTO shards VALUES ('cat-000000', 'cat', 0, 1)",
        "INSERT INTO requests VALUES ('r', 'nano_banana_2', '1K', '{}')",
        "INSERT INTO items"
        " (item_id, catalogue, prompt_id, sample, shard, position, request_hash, active, state, attempts)"
        " VALUES ('i', 'cat', 'p', 1, 'cat-000000', 0, 'r', true, 'pending', 0)",
        "INSERT INTO budget VALUES ('day:2026-11-22', 0, 67000, 0)",
    )
    with Ledger(ledger_url) as ledger:
        assert ledger.stamp == Stamp("live", "https://example.test")
        assert ledger.counters()["day:2026-11-22"].spent == 67_000
        assert [candidate.item_id for candidate in ledger.candidates("cat-000000")] == ["i"]
    fresh = f"sqlite:///{tmp_path}/fresh.sqlite"
    Ledger(fresh).close()
    if ledger_url.startswith("sqlite"):
        assert _shape(ledger_url) == _shape(fresh)
    else:
        assert {table: set(columns) for table, (columns, _) in _shape(ledger_url).items()} == {
            table: set(columns) for table, (columns, _) in _shape(fresh).items()
        }


def test_a_ledger_that_died_in_the_making_is_made_whole(ledger_url: str) -> None:
    """Tables without a word on their version: version 1 said it in a second transaction."""
    _make_version_1(ledger_url)
    with Ledger(ledger_url) as ledger:
        books.enter(ledger, [books.prompt("a")])
        assert len(books.waiting(ledger)) == 1


def test_a_ledger_of_a_later_version_is_refused(ledger_url: str) -> None:
    """It may hold what this version would overlook, and money is at stake."""
    with Ledger(ledger_url) as ledger, ledger.database.write() as connection:
        connection.execute(schema.meta.update().where(schema.meta.c.key == "schema_version").values(value="99"))
    with pytest.raises(UserError, match="schema version 99, and this program knows"):
        Ledger(ledger_url)
