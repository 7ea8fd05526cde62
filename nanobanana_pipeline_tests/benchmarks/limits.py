"""How much of what a provider allows is used: the product's gate against simulated limits, in simulated time.

The gate is the product's own, asked as `admissions` asks it, with work without end. The provider refuses what is beyond
so many tasks in flight, or so many submits within any 60 seconds.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nanobanana_pipeline.generation.limits import ProviderGate
from nanobanana_pipeline.ledger.entries import InFlight
from nanobanana_pipeline_tests.benchmarks.measuring import Section, table

_LATENCY_S: Final = 8.0
_SIGMA: Final = 0.35
_TRIP_S: Final = 0.2
_BATCH: Final = 64
_WARM_UP_S: Final = 300.0
_MEASURED_S: Final = 1800.0


@dataclass(slots=True)
class Allowance:
    """What the provider takes: tasks in flight, submits in a minute, and whether it says when to come again."""

    in_flight: int | None = None
    a_minute: int | None = None
    says_when: bool = True
    running: int = 0
    _recent: deque[float] = field(default_factory=deque)

    def refusal(self, now_s: float) -> float | None:
        """Seconds to wait when a submit is refused (0: it does not say), None when it is taken."""
        if self.in_flight is not None and self.running >= self.in_flight:
            return 0.0
        if self.a_minute is not None:
            while self._recent and self._recent[0] <= now_s - 60:
                self._recent.popleft()
            if len(self._recent) >= self.a_minute:
                return max(1.0, self._recent[0] + 60 - now_s) if self.says_when else 0.0
            self._recent.append(now_s)
        self.running += 1
        return None


@dataclass(frozen=True, slots=True)
class Use:
    """What came of it: tasks a second, refused submits a second, and the most refused in any one second."""

    rate: float
    refused: float
    worst_second: int


def measure() -> Section:
    """Every kind of limit, known to the product and to be found out."""
    cases: list[tuple[str, Allowance, ProviderGate, float]] = [
        (f"{n} in flight, to be found out", Allowance(in_flight=n), _gate(most=4 * n), n / mean_latency_s())
        for n in (16, 64, 512)
    ]
    for rate in (60, 600):
        best = rate / 60
        cases += [
            (f"{rate} a minute, known", Allowance(a_minute=rate), _gate(rate=rate), best),
            (f"{rate} a minute, to be found out", Allowance(a_minute=rate), _gate(), best),
            (f"{rate} a minute, without Retry-After", Allowance(a_minute=rate, says_when=False), _gate(), best),
        ]
    rows: list[list[object]] = []
    figures: dict[str, dict[str, float]] = {}
    for name, allowance, gate, best in cases:
        use = simulated(allowance, gate)
        figures[name] = {"used": use.rate / best, "refused_a_second": use.refused, "worst_second": use.worst_second}
        rows.append([name, f"{use.rate / best * 100:.0f} %", f"{use.refused:.2f}", use.worst_second])
    text = (
        f"{_MEASURED_S / 60:.0f} simulated minutes each; latency {_LATENCY_S:g} s (log-normal, sigma {_SIGMA}).\n\n"
        + table(["the provider allows", "used", "refused a second", "most refused in a second"], rows)
    )
    return Section("limits", text, figures)


def _gate(most: int = 1000, rate: int | None = None) -> ProviderGate:
    return ProviderGate("bench", max_in_flight=most, requests_per_minute=rate)


def mean_latency_s() -> float:
    """Seconds that a task occupies the provider."""
    draw = random.Random(3)
    return sum(_occupied_s(draw) for _ in range(10_000)) / 10_000


def _occupied_s(draw: random.Random) -> float:
    return _LATENCY_S * draw.lognormvariate(0, _SIGMA)


def simulated(allowance: Allowance, gate: ProviderGate, measured_s: float = _MEASURED_S) -> Use:
    """Run the gate against the allowance, event by event, for so many seconds after the warm-up."""
    random.seed(2)  # the gate's jitter
    draw = random.Random(3)
    events: list[tuple[float, int, Callable[[float], None]]] = []
    state: str | None = None
    in_flight = taken = numbers = 0
    refused: Counter[int] = Counter()
    next_round_s = 0.0

    def at(when_s: float, what: Callable[[float], None]) -> None:
        nonlocal numbers
        numbers += 1
        heapq.heappush(events, (when_s, numbers, what))

    def ask(now_s: float) -> None:
        nonlocal state, in_flight, next_round_s
        if now_s < next_round_s:
            return
        granted, wait_s = gate.grant(state, int(now_s * 1000), InFlight(in_flight), _BATCH)
        state = gate.take(state, int(now_s * 1000), granted)
        in_flight += granted
        for _ in range(granted):
            at(now_s + _TRIP_S / 2, arrive)
        next_round_s = now_s + (0.005 if granted == _BATCH else min(wait_s, 5.0))
        at(next_round_s, ask)

    def arrive(now_s: float) -> None:
        nonlocal taken
        wait_s = allowance.refusal(now_s)
        if wait_s is None:
            taken += now_s >= _WARM_UP_S
            at(now_s + _occupied_s(draw), end)
            at(now_s + _TRIP_S / 2, lambda _: gate.accepted())
        else:
            refused[int(now_s)] += now_s >= _WARM_UP_S
            at(now_s + _TRIP_S / 2, lambda back_s: push_back(back_s, wait_s))

    def push_back(now_s: float, wait_s: float) -> None:
        nonlocal state, in_flight
        in_flight -= 1
        state = gate.pushed_back(state, int(now_s * 1000), wait_s or None)

    def end(now_s: float) -> None:
        nonlocal in_flight, next_round_s
        allowance.running -= 1
        in_flight -= 1
        next_round_s = now_s  # room was made: asked again now
        ask(now_s)

    at(0.0, ask)
    while events and events[0][0] < _WARM_UP_S + measured_s:
        now_s, _, what = heapq.heappop(events)
        what(now_s)
    return Use(taken / measured_s, sum(refused.values()) / measured_s, max(refused.values(), default=0))
