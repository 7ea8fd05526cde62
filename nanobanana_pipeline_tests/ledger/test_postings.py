"""Attempts and their money: one open attempt an item, durable before it is sent, counted once wherever it ends."""

from typing import Any

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.entries import Attempt, Blocked, Cause, Stale, Worker
from nanobanana_pipeline.ledger.ledger import Ledger, Stamp
from nanobanana_pipeline.ledger.states import MOVES, AttemptState, Holding, ItemState
from nanobanana_pipeline.ledger.work import Rerun, open_attempts
from nanobanana_pipeline_tests.ledger.books import PRICE, admit, admitted, enter, prompt, waiting

S = AttemptState
OTHER = Worker(owner="worker-2", run_id="run-2", root_run_id="run-2", run_scope="run-2")


def held(ledger: Ledger, scope: str = "catalogue:cat") -> Holding:
    """What stands on a counter."""
    return ledger.counters().get(scope, Holding())


def move(ledger: Ledger, attempt: Attempt, to: AttemptState, then: ItemState | None = None, **facts: Any) -> bool:
    """A move in a transaction of its own."""
    with ledger.posting() as postings:
        return postings.move(attempt, to, then=then, **facts)


def test_two_workers_with_the_same_view_make_one_attempt(ledger: Ledger) -> None:
    """Both saw the item waiting; paying for it is allowed once."""
    enter(ledger, [prompt("a")])
    seen_by_both = waiting(ledger)
    admitted(ledger, seen_by_both[0])
    assert admit(ledger, seen_by_both, worker=OTHER) == [Stale()]


def test_a_stale_view_pays_nothing_after_the_item_was_done(ledger: Ledger) -> None:
    """A slow worker's old page must not submit what another has finished meanwhile."""
    enter(ledger, [prompt("a")])
    page = waiting(ledger)
    attempt = admitted(ledger, page[0])
    move(ledger, attempt, S.COMPLETED, cost_micros=1)
    move(ledger, attempt, S.STORED)
    assert admit(ledger, page, worker=OTHER) == [Stale()]


def test_an_edited_or_removed_row_is_not_submitted_from_an_old_page(ledger: Ledger) -> None:
    """The catalogue as it is now decides, not as it was when the page was read."""
    enter(ledger, [prompt("a", "one"), prompt("b")])
    page = waiting(ledger)
    enter(ledger, [prompt("a", "two")])
    assert admit(ledger, page) == [Stale(), Stale()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([], Holding(reserved=PRICE)),
        ([S.SUBMITTED], Holding(reserved=PRICE)),
        ([S.REFUSED], Holding()),
        ([S.UNKNOWN], Holding(at_risk=PRICE)),
        ([S.UNKNOWN, S.SUBMITTED], Holding(reserved=PRICE)),
        ([S.UNKNOWN, S.ABANDONED], Holding(at_risk=PRICE)),
        ([S.UNKNOWN, S.REFUSED], Holding()),
        ([S.SUBMITTED, S.OVERDUE], Holding(at_risk=PRICE)),
        ([S.SUBMITTED, S.OVERDUE, S.COMPLETED], Holding(spent=67_200)),
        ([S.SUBMITTED, S.FAILED], Holding()),
        ([S.SUBMITTED, S.COMPLETED], Holding(spent=67_200)),
        ([S.SUBMITTED, S.COMPLETED, S.STORED], Holding(spent=67_200)),
        ([S.COMPLETED, S.UNUSABLE], Holding(spent=67_200)),
    ],
)
def test_money_stands_where_the_state_says(ledger: Ledger, path: list[AttemptState], expected: Holding) -> None:
    """Whatever way an attempt took, it is on one account, once."""
    enter(ledger, [prompt("a")])
    attempt = admitted(ledger, waiting(ledger)[0])
    for state in path:
        facts: dict[str, Any] = {"cost_micros": 67_200} if state is S.COMPLETED else {}
        assert move(ledger, attempt, state, **facts)
    assert held(ledger) == expected
    assert held(ledger, f"day:{attempt.day}") == expected
    assert held(ledger, "run:run-1") == expected


def test_a_closed_attempt_is_never_counted_again(ledger: Ledger) -> None:
    """Two workers that both see the completion settle it once."""
    enter(ledger, [prompt("a")])
    attempt = admitted(ledger, waiting(ledger)[0])
    move(ledger, attempt, S.SUBMITTED)
    (twin,) = _open(ledger)
    assert move(ledger, attempt, S.COMPLETED, cost_micros=10)
    assert not move(ledger, twin, S.COMPLETED, cost_micros=10)
    assert held(ledger) == Holding(spent=10)


def test_a_late_answer_settles_an_attempt_that_was_taken_for_unknown(ledger: Ledger) -> None:
    """A worker that was stopped past its lease still brings home the answer it got."""
    enter(ledger, [prompt("a")])
    attempt = admitted(ledger, waiting(ledger)[0])
    (twin,) = _open(ledger)
    move(ledger, twin, S.UNKNOWN)
    assert move(ledger, attempt, S.SUBMITTED, task_id="t-1")
    assert held(ledger) == Holding(reserved=PRICE)
    assert [entry.task_id for entry in _open(ledger)] == ["t-1"]


def test_no_other_moves_than_the_state_machine_allows(ledger: Ledger) -> None:
    """A stored attempt can't fail, a refused one can't complete: a bug must not rewrite the books."""
    enter(ledger, [prompt("a")])
    attempt = admitted(ledger, waiting(ledger)[0])
    move(ledger, attempt, S.REFUSED)
    for state in set(S) - MOVES[S.REFUSED] - {S.REFUSED}:
        with pytest.raises(AssertionError), ledger.posting() as postings:
            postings.move(attempt, state)
    assert held(ledger) == Holding()


def test_the_cap_holds_and_says_what_it_would_take(ledger: Ledger) -> None:
    """Reserved + spent + at risk may reach the cap and not pass it; the message names the figures."""
    enter(ledger, [prompt("a"), prompt("b"), prompt("c")])
    verdicts = admit(ledger, waiting(ledger), caps=Caps(day=2 * PRICE))
    assert [type(verdict) for verdict in verdicts] == [Attempt, Attempt, Blocked]
    shortage = verdicts[2].shortage  # type: ignore[union-attr]
    assert shortage is not None
    assert not shortage.may_ease or shortage.held.reserved
    assert "$0.140000" in str(shortage)
    assert held(ledger) == Holding(reserved=2 * PRICE)


def test_what_is_blocked_waits_as_it_was(ledger: Ledger) -> None:
    """A cap that stops an item must not lose it."""
    enter(ledger, [prompt("a")])
    admit(ledger, waiting(ledger), caps=Caps(catalogue=PRICE - 1))
    assert [it.state for it in waiting(ledger)] == [ItemState.PENDING]
    assert [it.attempts for it in waiting(ledger)] == [0]


def test_a_shortage_eases_only_by_what_is_reserved(ledger: Ledger) -> None:
    """Waiting for money that is spent for good would be waiting for ever."""
    enter(ledger, [prompt("a"), prompt("b")])
    first, second = waiting(ledger)
    attempt = admitted(ledger, first)
    (verdict,) = admit(ledger, [second], caps=Caps(day=PRICE))
    assert isinstance(verdict, Blocked)
    assert verdict.shortage is not None
    assert verdict.shortage.may_ease
    move(ledger, attempt, S.COMPLETED, cost_micros=PRICE)
    (verdict,) = admit(ledger, [second], caps=Caps(day=PRICE))
    assert isinstance(verdict, Blocked)
    assert verdict.shortage is not None
    assert not verdict.shortage.may_ease


def test_a_settlement_above_its_reservation_is_recorded_and_stops_the_next(ledger: Ledger) -> None:
    """The money is gone, so the books say so; what they must not do is spend more."""
    enter(ledger, [prompt("a"), prompt("b")])
    first, second = waiting(ledger)
    move(ledger, admitted(ledger, first), S.COMPLETED, cost_micros=3 * PRICE)
    assert held(ledger) == Holding(spent=3 * PRICE)
    (verdict,) = admit(ledger, [second], caps=Caps(day=3 * PRICE))
    assert isinstance(verdict, Blocked)


def test_a_refused_attempt_is_submitted_again_under_its_own_name(ledger: Ledger) -> None:
    """The idempotency key is the attempt's id: a retry after a refusal must carry the same one."""
    enter(ledger, [prompt("a")])
    candidate = waiting(ledger)[0]
    attempt = admitted(ledger, candidate)
    move(ledger, attempt, S.REFUSED, ItemState.PENDING)
    (again,) = admit(ledger, [candidate], again=attempt)
    assert isinstance(again, Attempt)
    assert (again.attempt_id, again.state, again.submits) == (attempt.attempt_id, S.SUBMITTING, 2)
    assert held(ledger) == Holding(reserved=PRICE)


def test_a_refused_attempt_is_not_submitted_again_once_another_worker_has_the_item(ledger: Ledger) -> None:
    """While one waits out its back-off, another may have made the next attempt."""
    enter(ledger, [prompt("a")])
    candidate = waiting(ledger)[0]
    attempt = admitted(ledger, candidate)
    move(ledger, attempt, S.REFUSED, ItemState.PENDING)
    admitted(ledger, waiting(ledger)[0], worker=OTHER)
    assert admit(ledger, [candidate], again=attempt) == [Stale()]


def test_paying_again_on_request_happens_once_under_one_root_run(ledger: Ledger) -> None:
    """Dagster's re-execution copies the config: `regenerate` in it must not pay a second time."""
    enter(ledger, [prompt("a")])
    attempt = admitted(ledger, waiting(ledger)[0])
    move(ledger, attempt, S.COMPLETED, cost_micros=1)
    move(ledger, attempt, S.STORED)
    (wanted,) = ledger.candidates("cat-000000", rerun=Rerun.REGENERATE, root_run_id="root")
    assert wanted.cause is Cause.REGENERATE
    again = admitted(ledger, wanted, worker=Worker("w", "run-3", "root", "root"))
    move(ledger, again, S.COMPLETED, cost_micros=1)
    move(ledger, again, S.STORED)
    assert ledger.candidates("cat-000000", rerun=Rerun.REGENERATE, root_run_id="root") == []
    assert len(ledger.candidates("cat-000000", rerun=Rerun.REGENERATE, root_run_id="other")) == 1


def test_simulated_and_live_work_never_mix(ledger: Ledger) -> None:
    """Simulated rows in real books would be a report nobody can trust."""
    ledger.claim(Stamp("simulated", "http://127.0.0.1:1"))
    ledger.claim(Stamp("simulated", "http://127.0.0.1:2"))
    with pytest.raises(UserError, match="holds simulated work"):
        ledger.claim(Stamp("live", "https://api.example"))
    assert ledger.stamp == Stamp("simulated", "http://127.0.0.1:1")


def _open(ledger: Ledger) -> list[Attempt]:
    with ledger.database.read() as connection:
        return list(open_attempts(connection))
