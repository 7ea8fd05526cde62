"""Ledgers of earlier versions open, keep what is in them, and become what this version would have made."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database
from nanobanana_pipeline.ledger.ledger import Ledger, Stamp
from nanobanana_pipeline.ledger.migrations import upgrade
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline.ledger.work import open_attempts
from nanobanana_pipeline_tests.ledger import books

_VERSION_1 = Path(__file__).parents[1] / "storage" / "data" / "version_0_1" / "ledger.sql"

_PAID = (
    "INSERT INTO attempts (attempt_id, item_id, attempt, catalogue, shard, prompt_id, sample, model, resolution,"
    " request_hash, cause, run_id, root_run_id, run_scope, owner, state, task_id, day, created_at, submitted_at,"
    " completed_at, submits, polls, reserved_micros, cost_micros, at_risk_micros)"
    " VALUES ('a', 'j', 1, 'cat', 'cat-000000', 'q', 1, 'nano_banana_2', '1K',"
    " 'r', 'new', 'run', 'run', 'run', 'worker', 'completed', 't', '2026-11-22', 1, 2,"
    " 3, 1, 1, 67000, 67000, 0)"
)
"""An attempt that is paid for, whose images are not there yet."""


def _make_version_1(url: str, *rows: str) -> None:
    database = Database(url)
    # A dump of SQLite's, of which PostgreSQL understands the tables and indexes as well.
    made = [each.strip() for each in _VERSION_1.read_text().split(";\n") if each.strip().startswith("CREATE")]
    with database.write() as connection:
        for statement in (*made, *rows):
            connection.exec_driver_sql(statement)
    database.dispose()


def _make_version(version: int, url: str, *rows: str) -> None:
    """A ledger as that version had it, with rows of version 1."""
    _make_version_1(url, *rows)
    database = Database(url)
    with database.write() as connection:
        upgrade(connection, 1, version)
        entry = schema.meta.update().where(schema.meta.c.key == "schema_version")
        connection.execute(entry.values(value=str(version)))
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


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_a_ledger_of_an_earlier_version_is_brought_up_to_date(version: int, ledger_url: str, tmp_path: Path) -> None:
    """What was in it stays, and it looks like one that this version made."""
    _make_version(
        version,
        ledger_url,
        "INSERT INTO ledger_meta VALUES ('schema_version', '1'), ('mode', 'live'), ('origin', 'https://example.test')",
        "INSERT INTO catalogues (catalogue, next_position) VALUES ('cat', 1)",
        "INSERT INTO shards VALUES ('cat-000000', 'cat', 0, 1)",
        "INSERT INTO requests VALUES ('r', 'nano_banana_2', '1K', '{}')",
        "INSERT INTO items"
        " (item_id, catalogue, prompt_id, sample, shard, position, request_hash, active, state, attempts)"
        " VALUES ('i', 'cat', 'p', 1, 'cat-000000', 0, 'r', true, 'pending', 0)",
        _PAID,
        "INSERT INTO budget VALUES ('day:2026-11-22', 0, 67000, 0)",
    )
    with Ledger(ledger_url) as ledger:
        assert ledger.stamp == Stamp("live", "https://example.test")
        assert ledger.counters()["day:2026-11-22"].spent == 67_000
        assert [candidate.item_id for candidate in ledger.candidates("cat-000000")] == ["i"]
        # Whether its images were asked for in vain is not known: so they are given up no sooner than any others.
        with ledger.database.read() as connection:
            (attempt,) = open_attempts(connection)
        assert (attempt.state, attempt.completed_at, attempt.delivery_failed_at) == (AttemptState.COMPLETED, 3, None)
        assert attempt.cost_micros == 67_000
    fresh = f"sqlite:///{tmp_path}/fresh.sqlite"
    Ledger(fresh).close()
    if ledger_url.startswith("sqlite"):
        assert _shape(ledger_url) == _shape(fresh)
    else:
        assert {table: set(columns) for table, (columns, _) in _shape(ledger_url).items()} == {
            table: set(columns) for table, (columns, _) in _shape(fresh).items()
        }


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_a_process_of_an_earlier_version_goes_on_beside_this_one(version: int, ledger_url: str) -> None:
    """It began before the ledger was brought up to date, and enters what it knows of."""
    _make_version(version, ledger_url, "INSERT INTO ledger_meta VALUES ('schema_version', '1')")
    with Ledger(ledger_url) as ledger, ledger.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO requests VALUES ('r', 'nano_banana_2', '1K', '{}')")
        connection.exec_driver_sql(_PAID)
        connection.exec_driver_sql("UPDATE attempts SET state = 'stored', stored_at = 4, closed_at = 4")
        assert connection.execute(sa.select(schema.attempts.c.delivery_failed_at)).scalar_one() is None


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
