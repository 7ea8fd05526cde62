"""Group commit: many workers' postings in one transaction, and a bad one among them that takes nobody with it."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.entries import AdmissionRequest, Attempt, Stale
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import AttemptState, Holding, ItemState
from nanobanana_pipeline.ledger.writer import GroupCommit
from nanobanana_pipeline_tests.ledger.books import NO_CAPS, PRICE, WORKER, OpenGate, admitted, enter, prompt, waiting

S = AttemptState
COST = 67_200
SHARDS = ("cat-000000", "cat-000001")
A_SHARD = 6

Work = Callable[[], Coroutine[Any, Any, Any]]


class SpoiltError(Exception):
    """What a bad posting raises."""


@contextmanager
def one_batch(ledger: Ledger) -> Generator[None]:
    """Whatever is posted within goes into one transaction: the writer is kept busy until the end."""
    busy, go = threading.Event(), threading.Event()

    def wait(_: Postings) -> None:
        busy.set()
        go.wait(60)

    with ThreadPoolExecutor(1) as thread:
        waited = thread.submit(asyncio.run, ledger.post(wait))
        assert busy.wait(60)
        try:
            yield
        finally:
            go.set()
        waited.result(60)


def together(ledger: Ledger, loops: list[list[Work]]) -> list[list[Any]]:
    """What each of some postings gave or raised, posted in one batch from an event loop of its own for each list."""
    posted = threading.Barrier(len(loops) + 1)

    async def loop(works: list[Work]) -> list[Any]:
        tasks = [asyncio.create_task(work()) for work in works]
        await asyncio.sleep(0)  # each has posted now
        posted.wait(60)
        return await asyncio.gather(*tasks, return_exceptions=True)

    with ThreadPoolExecutor(len(loops)) as threads, one_batch(ledger):
        running = [threads.submit(asyncio.run, loop(works)) for works in loops]
        posted.wait(60)
    return [one.result(60) for one in running]


def attempts_of(ledger: Ledger, shard: str) -> list[Attempt]:
    """An attempt in flight for each item of a shard."""
    return [admitted(ledger, candidate) for candidate in waiting(ledger, shard)]


def completing(ledger: Ledger, attempt: Attempt, *, spoilt: bool) -> Work:
    """A posting that books an attempt's cost, and one that then fails."""

    def posting(postings: Postings) -> bool:
        moved = postings.move(attempt, S.COMPLETED, cost_micros=COST)
        if spoilt:
            raise SpoiltError(attempt.attempt_id)
        return moved

    return lambda: ledger.post(posting)


def test_a_bad_posting_harms_none_of_its_batch(ledger: Ledger) -> None:
    """Shards of one process commit together: no cent of one may be lost, or counted twice, for the fault of another."""
    enter(ledger, [prompt(f"p{n}") for n in range(2 * A_SHARD)], shard_size=A_SHARD)
    attempts = [attempts_of(ledger, shard) for shard in SHARDS]
    spoilt = {attempts[0][2].attempt_id, attempts[1][0].attempt_id, attempts[1][5].attempt_id}

    outcomes = together(
        ledger,
        [[completing(ledger, each, spoilt=each.attempt_id in spoilt) for each in shard] for shard in attempts],
    )

    for shard, given in zip(attempts, outcomes, strict=True):
        for attempt, outcome in zip(shard, given, strict=True):
            if attempt.attempt_id in spoilt:
                assert isinstance(outcome, SpoiltError)
                assert str(outcome) == attempt.attempt_id  # its own error, and no neighbour's
                assert (attempt.state, attempt.cost_micros) == (S.SUBMITTING, 0)
            else:
                assert outcome is True
                assert (attempt.state, attempt.cost_micros) == (S.COMPLETED, COST)
    with ledger.database.read() as connection:
        rows = connection.execute(sa.select(schema.attempts)).all()
    assert {row.attempt_id for row in rows if row.state == S.SUBMITTING} == spoilt
    good = 2 * A_SHARD - len(spoilt)
    assert ledger.counters()["catalogue:cat"] == Holding(reserved=len(spoilt) * PRICE, spent=good * COST)


def test_what_failed_can_be_posted_again(ledger: Ledger) -> None:
    """The attempt in memory is what it was before: the second try begins where the first did."""
    enter(ledger, [prompt("a"), prompt("b")])
    bad, good = attempts_of(ledger, SHARDS[0])
    together(ledger, [[completing(ledger, bad, spoilt=True), completing(ledger, good, spoilt=False)]])
    assert asyncio.run(ledger.post(lambda postings: postings.move(bad, S.COMPLETED, cost_micros=COST)))
    assert ledger.counters()["catalogue:cat"] == Holding(spent=2 * COST)


@pytest.mark.parametrize("caps", [NO_CAPS, Caps(day=4 * PRICE)], ids=["no cap", "a cap with room for four"])
def test_admissions_beside_a_bad_posting_reserve_once(ledger: Ledger, caps: Caps) -> None:
    """An admission that is run again must neither reserve twice nor let another pass the cap."""
    enter(ledger, [prompt(f"p{n}") for n in range(2 * A_SHARD)], shard_size=A_SHARD)
    first = admitted(ledger, waiting(ledger)[0])
    with ledger.posting() as postings:
        postings.move(first, S.REFUSED, then=ItemState.PENDING)

    def admission(shard: str) -> Work:
        requests = [
            AdmissionRequest(candidate, PRICE, first if candidate.item_id == first.item_id else None)
            for candidate in ledger.candidates(shard)
        ]
        return lambda: ledger.post(lambda postings: postings.admit(requests, WORKER, caps, OpenGate()))

    def bad() -> Coroutine[Any, Any, Any]:
        def posting(_: Postings) -> None:
            raise SpoiltError

        return ledger.post(posting)

    outcomes = together(ledger, [[admission(SHARDS[0]), bad], [admission(SHARDS[1])]])

    assert isinstance(outcomes[0][1], SpoiltError)
    made = [each for verdicts in (outcomes[0][0], outcomes[1][0]) for each in verdicts if isinstance(each, Attempt)]
    assert len(made) == (4 if caps.day else 2 * A_SHARD)
    assert ledger.counters()["catalogue:cat"] == Holding(reserved=len(made) * PRICE)
    with ledger.database.read() as connection:
        rows = connection.execute(sa.select(schema.attempts)).all()
    open_ones = {row.attempt_id: row.submits for row in rows if row.state == S.SUBMITTING}
    assert open_ones == {each.attempt_id: each.submits for each in made}
    # Which of the two loops posts first is open, and with a cap the other one may find no room.
    assert open_ones.get(first.attempt_id, 2) == 2


def moving(ledger: Ledger, attempt: Attempt, to: AttemptState, **facts: Any) -> Work:
    """A posting that moves an attempt."""
    return lambda: ledger.post(lambda postings: postings.move(attempt, to, **facts))


def test_many_moves_in_one_transaction(ledger: Ledger) -> None:
    """Written as rows of a few statements, each still moves its own attempt, item and money."""
    enter(ledger, [prompt(f"p{n}") for n in range(10)])
    attempts = attempts_of(ledger, SHARDS[0])
    # Answers that come at once name their task as well: other columns, so another statement.
    facts: list[dict[str, Any]] = [{"task_id": "task", "submitted_at": 1}, {}]
    works = [moving(ledger, each, S.COMPLETED, cost_micros=COST, **facts[n % 2]) for n, each in enumerate(attempts)]
    assert together(ledger, [works]) == [[True] * 10]
    ends = [S.STORED] * 4 + [S.UNUSABLE] * 6
    assert together(ledger, [[moving(ledger, *pair) for pair in zip(attempts, ends, strict=True)]]) == [[True] * 10]
    with ledger.database.read() as connection:
        items = {row.item_id: row.state for row in connection.execute(sa.select(schema.items))}
        rows = {row.attempt_id: row.state for row in connection.execute(sa.select(schema.attempts))}
    assert [rows[each.attempt_id] for each in attempts] == ends == [each.state for each in attempts]
    assert [items[each.item_id] for each in attempts] == [ItemState.DONE] * 4 + [ItemState.FAILED] * 6
    assert ledger.counters()["catalogue:cat"] == Holding(spent=10 * COST)


def test_one_that_was_settled_elsewhere_is_told_so_and_the_others_move(ledger: Ledger) -> None:
    """A move is believed at first; the book's word against one of them must neither undo nor repeat the others."""
    enter(ledger, [prompt(f"p{n}") for n in range(A_SHARD)])
    attempts = attempts_of(ledger, SHARDS[0])
    with ledger.posting() as postings:
        assert postings.move(replace(attempts[2]), S.COMPLETED, cost_micros=1)
    (verdicts,) = together(ledger, [[completing(ledger, each, spoilt=False) for each in attempts]])
    assert verdicts == [True, True, False, True, True, True]
    assert ledger.counters()["catalogue:cat"] == Holding(spent=5 * COST + 1)


def test_of_two_that_want_the_same_items_one_has_them(ledger: Ledger) -> None:
    """Two rounds of admissions with the same view, in one transaction, make one attempt an item."""
    enter(ledger, [prompt("a"), prompt("b")])
    requests = [AdmissionRequest(candidate, PRICE) for candidate in waiting(ledger)]

    def admission() -> Coroutine[Any, Any, Any]:
        return ledger.post(lambda postings: postings.admit(requests, WORKER, NO_CAPS, OpenGate()))

    (rounds,) = together(ledger, [[admission, admission]])
    assert [type(verdict) for verdicts in rounds for verdict in verdicts] == [Attempt, Attempt, Stale, Stale]
    assert ledger.counters()["catalogue:cat"] == Holding(reserved=2 * PRICE)


def test_threads_that_post_first_at_once_leave_no_writer_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user too many, who never closes it, would keep the writer's thread and its database open for good."""
    take, both = GroupCommit.shared, threading.Barrier(2)

    def take_together(url: str) -> GroupCommit:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return take(url)

    monkeypatch.setattr(GroupCommit, "shared", take_together)
    before = set(threading.enumerate())
    with Ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger, ThreadPoolExecutor(2) as threads:
        posted = [threads.submit(asyncio.run, ledger.post(lambda postings: postings.now)) for _ in range(2)]
        assert all(one.result(60) for one in posted)
    assert set(threading.enumerate()) <= before


def test_an_answer_waits_for_room_on_a_full_disk(tmp_path: Path) -> None:
    """The task is known to nobody but this process: given up, it would be paid for and never be asked about."""
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        enter(ledger, [prompt("a")])
        (attempt,) = attempts_of(ledger, SHARDS[0])
        pages = [1_000_000, 1]

        def accepted(postings: Postings) -> bool:
            # As many as there are, and no more; then there is room again.
            postings.execute(sa.text(f"PRAGMA max_page_count = {pages.pop()}"))
            return postings.move(attempt, S.SUBMITTED, task_id="task-1", text="long" * 50_000)

        assert asyncio.run(ledger.post(accepted))
        assert pages == []
        assert (attempt.state, attempt.task_id) == (S.SUBMITTED, "task-1")
        assert ledger.counters()["catalogue:cat"] == Holding(reserved=PRICE)


def test_an_answer_waits_for_whoever_holds_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who looks into the book by hand, and forgets to end it, must not cost an image."""
    monkeypatch.setattr("nanobanana_pipeline.ledger.database.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "ledger.sqlite"
    with Ledger(f"sqlite:///{path}") as ledger:
        enter(ledger, [prompt("a")])
        (attempt,) = attempts_of(ledger, SHARDS[0])

        async def accepted() -> bool:
            with closing(sqlite3.connect(path, isolation_level=None)) as person:
                person.execute("BEGIN IMMEDIATE")
                posted = asyncio.create_task(
                    ledger.post(lambda postings: postings.move(attempt, S.SUBMITTED, task_id="task-1"))
                )
                done, _ = await asyncio.wait([posted], timeout=0.3)
                assert not done
            return await posted

        assert asyncio.run(accepted())
        assert ledger.counters()["catalogue:cat"] == Holding(reserved=PRICE)
