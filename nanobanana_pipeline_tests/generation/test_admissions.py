"""Who waits for room under the cap, and for how long."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanobanana_pipeline.generation.admissions import Admissions, DeferredError
from nanobanana_pipeline.generation.limits import ProviderGate
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.entries import AdmissionRequest, Attempt, Candidate, InFlight, Stale
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline_tests.ledger.books import PRICE, WORKER, admitted, enter, prompt, waiting

_PATIENCE_S = 50.0
_QUESTION_S = 20.0


class _Clock(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put on."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class _Provider(ProviderGate):
    """Takes everything; each question takes its time: at the fourth in vain, a run's patience has ended."""

    def __init__(self, clock: _Clock, takes_s: Callable[[int], float]) -> None:
        super().__init__("account", max_in_flight=1000, requests_per_minute=None)
        self._clock = clock
        self._takes_s = takes_s
        self.asked = 0

    def grant(self, state: str | None, now_ms: int, in_flight: InFlight, wanted: int) -> tuple[int, float]:
        """All that are asked for at once."""
        self.asked += 1
        self._clock.ahead_s += self._takes_s(self.asked)
        return super().grant(state, now_ms, in_flight, wanted)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    with Ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as opened:
        yield opened


def outcomes(
    ledger: Ledger,
    candidates: list[Candidate],
    cap: int,
    *,
    meanwhile: Callable[[int], None] = lambda _: None,
    takes_s: Callable[[int], float] = lambda _: _QUESTION_S,
) -> tuple[list[Attempt | Stale | BaseException], int]:
    """What became of these, all waiting at once, and how often the ledger was asked.

    `meanwhile` is called again and again with how often it was asked so far; the nth question `takes_s(n)`.
    """

    async def admit_all(clock: _Clock) -> tuple[list[Attempt | Stale | BaseException], int]:
        provider = _Provider(clock, takes_s)
        admissions = Admissions(ledger, WORKER, Caps(day=cap), provider, patience_s=_PATIENCE_S)
        serving = asyncio.create_task(admissions.serve())
        admitting = asyncio.gather(
            *(admissions.admit(AdmissionRequest(candidate, PRICE)) for candidate in candidates), return_exceptions=True
        )
        while not admitting.done():
            meanwhile(provider.asked)
            admissions.room_made()
            await asyncio.sleep(0)
        admissions.stop()
        await serving
        return admitting.result(), provider.asked

    with asyncio.Runner(loop_factory=_Clock) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, _Clock)
        return runner.run(admit_all(loop))


def test_those_who_wait_for_room_wait_together(ledger: Ledger) -> None:
    """For money that a task of another run holds: a shard's items once waited for it in turn, a quarter hour each."""
    enter(ledger, [prompt(f"p{n}") for n in range(301)])
    first, *others = waiting(ledger)
    admitted(ledger, first)
    results, asked = outcomes(ledger, others, cap=PRICE)
    assert {type(result) for result in results} == {DeferredError}
    # The first 64 of them four times, the other 236 once.
    assert asked == 4 + 4


def test_nobody_is_given_up_while_there_is_room_now_and_then(ledger: Ledger) -> None:
    """Where one has just been let through, the next may be soon."""
    enter(ledger, [prompt(name) for name in "abcd"])
    first, *others = waiting(ledger)
    held = admitted(ledger, first)

    def settle(asked: int) -> None:
        if asked == 2 and held.state is AttemptState.SUBMITTING:
            with ledger.posting() as postings:
                postings.move(held, AttemptState.REFUSED)

    results, asked = outcomes(ledger, others, cap=2 * PRICE, meanwhile=settle)
    assert [type(result) for result in results] == [Attempt, Attempt, DeferredError]
    assert asked == 2 + 4


def test_time_in_which_nobody_asked_for_room_is_no_wait(ledger: Ledger) -> None:
    """An hour's pause that the provider asked for, or a ledger that was away: there may have been room meanwhile."""
    enter(ledger, [prompt(name) for name in "ab"])
    first, second = waiting(ledger)
    admitted(ledger, first)

    results, asked = outcomes(
        ledger, [second], cap=PRICE, takes_s=lambda question: 3600.0 if question == 3 else _QUESTION_S
    )
    assert [type(result) for result in results] == [DeferredError]
    assert asked == 2 + 4
