"""Forecasts held against simulated runs whose provider nobody told them about."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.reporting.forecast import Forecast, Pace, Work, forecast
from nanobanana_pipeline.reporting.history import Experience, History, Kind

KIND = Kind("1K", 0, 0)
EXPECTED_MICROS = 68_000.0
RUNS = 1_000

Floats = npt.NDArray[np.floating]


@dataclass
class Provider:
    """A provider with a price, a failure rate and latencies of its own."""

    random: np.random.Generator

    def __post_init__(self) -> None:
        self.failing = self.random.beta(1, 12)
        self.price = self.random.uniform(0.6, 1.3)
        self.spread = self.random.uniform(0.02, 0.2)
        self.latency = self.random.uniform(4, 30), self.random.uniform(0.2, 0.6)

    def items(self, count: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """For so many items: what each costs as a multiple of what was expected, and the attempts it took."""
        attempts = np.ones(count, dtype=np.int64)
        succeeded = self.random.random(count) >= self.failing
        for attempt in (2, 3):
            again = ~succeeded & (attempts == attempt - 1)
            attempts[again] = attempt
            succeeded[again] = self.random.random(int(again.sum())) >= self.failing
        costs = np.where(succeeded, self.price * np.exp(self.random.normal(0, self.spread, count)), 0.0)
        return costs, attempts

    def latencies(self, count: int) -> Floats:
        """Latencies of so many tasks, in seconds."""
        middle, spread = self.latency
        return middle * np.exp(self.random.normal(0, spread, count))


def _makespan(latencies: Floats, in_flight: int) -> float:
    """How long it takes to work through tasks in order, so many at once."""
    busy: list[float] = []
    for latency in latencies:
        begins = heapq.heappop(busy) if len(busy) == in_flight else 0.0
        heapq.heappush(busy, begins + float(latency))
    return max(busy)


def _coverage(
    runs: int, seen: int, items: int, in_flight: int, latencies: int, hit: Callable[[Forecast, Provider, int], bool]
) -> float:
    hits = 0
    for run in range(runs):
        provider = Provider(np.random.default_rng((run, seen, items)))
        costs, attempts = provider.items(seen)
        experiences = [Experience(KIND, float(cost), int(tries)) for cost, tries in zip(costs, attempts, strict=True)]
        history = History(experiences, {"1K": provider.latencies(latencies).tolist()})
        work = {KIND: Work(items, items * EXPECTED_MICROS)}
        hits += hit(forecast(load_spec(), work, history, Pace(in_flight, None), seed=run, draws=400), provider, items)
    return hits / runs


def _cost_is_within(found: Forecast, provider: Provider, items: int) -> bool:
    actual = provider.items(items)[0].sum() * EXPECTED_MICROS
    return found.cost.p10 <= actual <= found.cost.p90


@pytest.mark.slow
def test_eight_of_ten_runs_cost_what_was_forecast() -> None:
    """An 80 % interval that holds in 60 % of cases is a lie, and one that holds in 95 % tells too little."""
    assert 0.77 <= _coverage(RUNS, seen=200, items=200, in_flight=1, latencies=30, hit=_cost_is_within) <= 0.83


@pytest.mark.slow
def test_most_runs_take_as_long_as_was_forecast() -> None:
    """Whoever waits for a run plans their day by it; its end hangs on latencies that were hardly ever seen."""

    def hit(found: Forecast, provider: Provider, items: int) -> bool:
        actual = _makespan(provider.latencies(int(provider.items(items)[1].sum())), 32)
        return found.duration_s.p10 <= actual <= found.duration_s.p90

    assert 0.74 <= _coverage(200, seen=300, items=400, in_flight=32, latencies=300, hit=hit) <= 0.86


def test_the_same_question_has_the_same_answer() -> None:
    """A plan that is shown and then approved must not show other figures the second time."""
    work = {KIND: Work(10, 10 * EXPECTED_MICROS)}
    first, second, other = (forecast(load_spec(), work, History(), Pace(64, None), seed=seed) for seed in (1, 1, 2))

    assert first == second
    assert first != other


def test_no_work_costs_nothing() -> None:
    """An up-to-date catalogue is the usual case."""
    found = forecast(load_spec(), {}, History(), Pace(64, None))

    assert (found.cost, found.duration_s) == ((0, 0, 0), (0, 0, 0))


def test_a_rate_limit_stretches_the_duration() -> None:
    """At 60 a minute, 600 submits take ten minutes however quick the tasks are."""
    work = {KIND: Work(600, 600 * EXPECTED_MICROS)}
    history = History([Experience(KIND, 1.0, 1)] * 100, {"1K": [2.0, 3.0] * 50})

    quick, limited = (forecast(load_spec(), work, history, Pace(64, limit)) for limit in (None, 60))

    assert quick.duration_s.p90 < 60
    assert 600 < limited.duration_s.p50 < 610


def test_one_resolution_s_experience_speaks_for_another() -> None:
    """A reseller that is a third cheaper is so at every size; what was never tried must not fall back to the list."""
    history = History([Experience(KIND, 0.667, 1)] * 200, {})
    work = {Kind("4K", 0, 0): Work(100, 100 * 152_000.0)}

    assert forecast(load_spec(), work, history, Pace(64, None)).cost.p50 == pytest.approx(0.667 * 15_200_000, rel=0.01)


def test_dear_kinds_are_not_mixed_with_cheap_ones() -> None:
    """Requests with input images may cost more than the spec expects; with enough of them seen, that is what counts."""
    editing = Kind("1K", 3, 0)
    history = History([Experience(KIND, 1.0, 1)] * 100 + [Experience(editing, 2.0, 1)] * 100, {})
    work = {editing: Work(10, 10 * EXPECTED_MICROS)}

    assert forecast(load_spec(), work, history, Pace(64, None)).cost.p50 == pytest.approx(20 * EXPECTED_MICROS)
