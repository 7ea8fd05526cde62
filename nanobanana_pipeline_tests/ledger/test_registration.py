"""Catalogues in the book: nobody moves, nothing paid is forgotten, and what can't be read isn't taken for removed."""

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.entries import AdmissionRequest, Attempt
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.registration import GONE
from nanobanana_pipeline.ledger.states import ITEM_STATE_OF, AttemptState, ItemState
from nanobanana_pipeline.ledger.work import candidates
from nanobanana_pipeline_tests.ledger.books import (
    NO_CAPS,
    PRICE,
    WORKER,
    OpenGate,
    admitted,
    beside_a_worker,
    enter,
    late_to_look_for_deadlocks,
    prompt,
    waiting,
)


def _shards(ledger: Ledger) -> dict[str, list[str]]:
    return {work.shard: [it.prompt_id for it in waiting(ledger, work.shard)] for work in ledger.shard_work()}


def test_prompts_fill_shards_in_order_and_samples_stay_together(ledger: Ledger) -> None:
    """A shard is a partition of work: its prompts come whole, or an image of a pair would be in another run."""
    report = enter(ledger, [prompt("a"), prompt("b", samples=3), prompt("c")], shard_size=2)
    assert _shards(ledger) == {"cat-000000": ["a", "b", "b", "b"], "cat-000001": ["c"]}
    assert (report.new, report.prompts) == (5, 3)


def test_nobody_moves_when_rows_come_and_go(ledger: Ledger) -> None:
    """An item that moved would be paid again in its new shard, or be missing from both."""
    enter(ledger, [prompt("a"), prompt("b"), prompt("c")], shard_size=2)
    report = enter(ledger, [prompt("new"), prompt("c"), prompt("b", samples=2)], shard_size=2)
    assert _shards(ledger) == {"cat-000000": ["b", "b"], "cat-000001": ["c", "new"]}
    assert (report.new, report.removed, report.unchanged) == (2, 1, 2)


def test_what_was_entered_is_not_left_in_sqlites_log(tmp_path: Path) -> None:
    """Else the next worker to commit would have to write 200 MB of it to the database first."""
    place = tmp_path / "ledger.sqlite"
    with Ledger(f"sqlite:///{place}") as ledger:
        enter(ledger, [prompt(f"p{n}") for n in range(50)])
        alone = shutil.copy(place, tmp_path / "without-its-log.sqlite")
        with ledger.database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar_one() == 1_000
    with closing(sqlite3.connect(alone)) as copy:
        assert copy.execute("SELECT count(*) FROM items").fetchone() == (50,)


def test_what_has_priority_waits_in_front_whatever_the_page(ledger: Ledger) -> None:
    """A person who needs ten images today must not wait for the thousand that came before them."""
    enter(
        ledger, [prompt(name, priority=priority) for name, priority in zip("abcdef", (0, 5, -1, 5, 0, 9), strict=True)]
    )
    order: list[str] = []
    with ledger.database.read() as connection:
        page = candidates(connection, "cat-000000", limit=2)
        while page:
            order += [candidate.prompt_id for candidate in page]
            page = candidates(connection, "cat-000000", after=page[-1], limit=2)
    assert order == ["f", "b", "d", "a", "e", "c"]
    (work,) = ledger.shard_work()
    assert work.priority == 9

    report = enter(ledger, [prompt("a", priority=-2), prompt("b", priority=-3)])
    assert (report.relabelled, report.edited) == (2, 0)
    assert _shards(ledger) == {"cat-000000": ["a", "b"]}
    assert [work.priority for work in ledger.shard_work()] == [-2]
    enter(ledger, [prompt("a", priority=-2), prompt("b")])
    assert [work.priority for work in ledger.shard_work(shard="cat-000000")] == [0]


def test_a_removed_place_is_not_given_to_another(ledger: Ledger) -> None:
    """Append-only: a prompt that comes back finds its own shard, whatever came meanwhile."""
    enter(ledger, [prompt("a"), prompt("b")], shard_size=2)
    enter(ledger, [prompt("b"), prompt("c")], shard_size=2)
    enter(ledger, [prompt("a"), prompt("b"), prompt("c")], shard_size=2)
    assert _shards(ledger) == {"cat-000000": ["a", "b"], "cat-000001": ["c"]}


def test_what_was_not_read_in_full_loses_nothing(ledger: Ledger) -> None:
    """A half-written file is no order to forget its rows."""
    enter(ledger, [prompt("a"), prompt("b")])
    report = enter(ledger, [prompt("a")], fingerprint=None)
    assert report.removed == 0
    assert ledger.registered_fingerprint("cat") is None
    assert len(waiting(ledger)) == 2


def test_an_edit_makes_a_done_item_wait_and_its_undo_brings_the_image_back(ledger: Ledger) -> None:
    """An edited row is a new request; edited back, the image that was paid for is there already."""
    enter(ledger, [prompt("a", "one")])
    attempt = admitted(ledger, waiting(ledger)[0])
    with ledger.posting() as postings:
        postings.move(attempt, AttemptState.COMPLETED, cost_micros=5)
        postings.move(attempt, AttemptState.STORED, images="[]")
    assert waiting(ledger) == []
    enter(ledger, [prompt("a", "two")])
    assert [it.state for it in waiting(ledger)] == [ItemState.PENDING]
    enter(ledger, [prompt("a", "one")])
    assert waiting(ledger) == []


def test_an_edit_during_an_attempt_waits_for_its_end(ledger: Ledger) -> None:
    """At most one open attempt an item: the new request goes out when the old one has ended, not beside it."""
    enter(ledger, [prompt("a", "one")])
    attempt = admitted(ledger, waiting(ledger)[0])
    enter(ledger, [prompt("a", "two")])
    assert waiting(ledger) == []
    with ledger.posting() as postings:
        postings.move(attempt, AttemptState.COMPLETED, cost_micros=5)
        postings.move(attempt, AttemptState.STORED, images="[]")
    assert [it.body.count("two") for it in waiting(ledger)] == [1]


def test_a_catalogue_that_is_gone_keeps_its_rows_inactive(ledger: Ledger) -> None:
    """Its costs happened; only its work is over."""
    enter(ledger, [prompt("a")])
    (report,) = ledger.deactivate_missing(["other"])
    assert (report.catalogue, report.removed, report.shards) == ("cat", 1, {"cat-000000"})
    assert waiting(ledger) == []
    # Killed before its tables were written: it is told of again, until they are.
    assert [again.removed for again in ledger.deactivate_missing(["other"])] == [0]
    ledger.seal("cat", GONE)
    assert ledger.deactivate_missing(["other"]) == []


def test_an_edit_undone_during_the_attempt_for_it_brings_the_image_back(ledger: Ledger) -> None:
    """What the row asks for again has its image: the attempt that ends meanwhile was for another request."""
    enter(ledger, [prompt("a", "one")])
    first = admitted(ledger, waiting(ledger)[0])
    with ledger.posting() as postings:
        postings.move(first, AttemptState.COMPLETED, cost_micros=5)
        postings.move(first, AttemptState.STORED, images="[]")
    enter(ledger, [prompt("a", "two")])
    second = admitted(ledger, waiting(ledger)[0])
    enter(ledger, [prompt("a", "one")])
    with ledger.posting() as postings:
        postings.move(second, AttemptState.COMPLETED, cost_micros=5)
        postings.move(second, AttemptState.STORED, images="[]")
    assert waiting(ledger) == []


@pytest.mark.postgres
@pytest.mark.parametrize("steps", [1, 2, 4], ids=["admitted", "completed", "stored"])
def test_an_edit_beside_a_worker_leaves_the_item_where_the_worker_brings_it(postgres_url: str, steps: int) -> None:
    """SQLite has one writer. On PostgreSQL a registration that read the item before its attempt wrote that state back.

    An item with its image would wait again, and be paid for again; or be in flight for ever, with nothing open.
    """
    with Ledger(postgres_url) as ledger:
        enter(ledger, [prompt("a")])
        (candidate,) = waiting(ledger)
        with ledger.posting() as postings:
            (attempt,) = postings.admit([AdmissionRequest(candidate, PRICE)], WORKER, NO_CAPS, OpenGate())
            assert isinstance(attempt, Attempt)
            for to in (AttemptState.SUBMITTED, AttemptState.COMPLETED, AttemptState.STORED)[: steps - 1]:
                postings.move(attempt, to, images="[]" if to is AttemptState.STORED else None)
            editing = threading.Thread(target=enter, args=(ledger, [prompt("a", priority=1)]))
            editing.start()
            editing.join(0.5)
            assert editing.is_alive()
        editing.join(120)
        (work,) = ledger.shard_work()
        assert (work.states, work.priority) == ({ITEM_STATE_OF[attempt.state]: 1}, 0)


@pytest.mark.postgres
def test_a_registration_that_is_in_a_workers_way_is_made_again(postgres_url: str) -> None:
    """Each holds an item that the other wants next: PostgreSQL ends one of them, and nobody has to start it anew."""
    with Ledger(late_to_look_for_deadlocks(postgres_url)) as ledger:
        enter(ledger, [prompt("a"), prompt("b")])
        first, second = sorted(waiting(ledger), key=lambda candidate: candidate.item_id)
        held_first, held_second = (
            schema.items.update().where(schema.items.c.item_id == item.item_id).values(note="held")
            for item in (first, second)
        )
        rows = [prompt(first.prompt_id, priority=1), prompt(second.prompt_id, priority=2)]
        report = beside_a_worker(ledger, lambda: enter(ledger, rows), held_second, held_first)
        assert (report.relabelled, report.prompts) == (2, 2)
        assert [(it.prompt_id, it.priority) for it in waiting(ledger)] == [
            (second.prompt_id, 2),
            (first.prompt_id, 1),
        ]
