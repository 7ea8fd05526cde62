"""What a person hears while the ledger does not answer: that it waits, what to do, and when it is over."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest
import sqlalchemy as sa

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database, LedgerLostError
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.outages import told
from nanobanana_pipeline_tests.ledger import books

SOON_S = 120


@pytest.fixture
def lines() -> Iterator[SimpleQueue[str]]:
    """What a person is told, as it comes."""
    heard: SimpleQueue[str] = SimpleQueue()
    with told(heard.put):
        yield heard


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty ledger in a file, which says soon that somebody holds it."""
    monkeypatch.setattr("nanobanana_pipeline.ledger.database.BUSY_TIMEOUT_S", 0.02)
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.prepare()
    yield database
    database.dispose()


def enter(ledger: Database) -> None:
    """Write something."""
    with ledger.write() as connection:
        connection.execute(ledger.upsert(schema.meta).values(key="a", value="b").on_conflict_do_nothing())


def test_who_holds_the_ledger_is_waited_for_and_all_threads_say_it_once(
    ledger: Database, tmp_path: Path, lines: SimpleQueue[str]
) -> None:
    """A standstill of minutes without a word looks like a hang, and a hang is killed; eight lines say no more."""
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(8) as threads:
            entries = [threads.submit(enter, ledger) for _ in range(8)]
            said = lines.get(timeout=SOON_S)
            assert "another program holds it; let that finish, or end it" in said
            assert str(tmp_path) in said
            person.execute("ROLLBACK")
            for entry in entries:
                entry.result(SOON_S)
    assert "is back" in lines.get(timeout=SOON_S)
    assert lines.empty()


def test_a_catalogue_is_entered_once_the_ledger_is_given_back(
    ledger: Database, tmp_path: Path, lines: SimpleQueue[str]
) -> None:
    """It was a traceback, after a minute: a million rows take another process as long."""
    with (
        Ledger(str(ledger.engine.url)) as opened,
        closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None, check_same_thread=False)) as person,
        ThreadPoolExecutor(1) as thread,
    ):
        person.execute("BEGIN IMMEDIATE")
        entered = thread.submit(books.enter, opened, [books.prompt("a")])
        assert "another program holds it" in lines.get(timeout=SOON_S)
        person.execute("ROLLBACK")
        entered.result(SOON_S)
        assert len(opened.shard_work()) == 1


def test_a_full_disk_is_told_of_and_that_there_is_room_again(ledger: Database, lines: SimpleQueue[str]) -> None:
    """What to do is in the line: nobody else makes room."""
    pages = [1_000_000, 1]

    def work() -> None:
        with ledger.write() as connection:
            connection.execute(sa.text(f"PRAGMA max_page_count = {pages.pop()}"))
            connection.execute(schema.meta.insert().values(key="long", value="long" * 50_000))

    ledger.through_loss(work)
    assert "its disk is full; make room" in lines.get(timeout=SOON_S)
    assert "is back" in lines.get(timeout=SOON_S)


def test_one_that_was_waited_for_in_vain_is_not_said_to_be_back(
    ledger: Database, tmp_path: Path, lines: SimpleQueue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own last line says how it ended."""
    monkeypatch.setattr("nanobanana_pipeline.ledger.database.LOSS_PATIENCE_S", 0.1)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerLostError, match="out of reach"):
            enter(ledger)
    assert "another program holds it" in lines.get(timeout=SOON_S)
    enter(ledger)
    assert lines.empty()


def test_whoever_can_not_be_told_holds_nothing_up(ledger: Database) -> None:
    """A log that is out of reach too, or a closed terminal."""

    def refuse(_: str) -> None:
        raise OSError

    pages = [1_000_000, 1]

    def work() -> None:
        with ledger.write() as connection:
            connection.execute(sa.text(f"PRAGMA max_page_count = {pages.pop()}"))
            connection.execute(schema.meta.insert().values(key="long", value="long" * 50_000))

    with told(refuse):
        ledger.through_loss(work)
    assert pages == []
