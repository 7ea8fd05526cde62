"""Forecasts held against simulated runs whose provider nobody told them about.

    python -m nanobanana_pipeline_tests.reporting.backtest

prints how often a run's cost and duration lay within P10 to P90: the table of docs/costs.md.
"""

import heapq
import sys
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.reporting.forecast import Pace, Work, forecast
from nanobanana_pipeline.reporting.history import Experience, History, Kind

KIND: Final = Kind("1K", 0, 0)
EXPECTED_MICROS: Final = 68_000.0
RUNS: Final = 1_000

Floats = npt.NDArray[np.floating]


class Case(NamedTuple):
    """How many finished items a forecast goes by, how many it is for, and how many tasks are in flight at once."""

    seen: int
    items: int
    in_flight: int


CASES: Final = (Case(100, 100, 64), Case(200, 200, 32), Case(300, 400, 32), Case(400, 1_000, 64))


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


class Coverage(NamedTuple):
    """The share of runs whose cost, and whose duration, lay within the forecast's 80 % interval."""

    cost: float
    duration: float


def coverage(case: Case, runs: int = RUNS) -> Coverage:
    """Forecast so many runs, each of another provider, and see what comes of them."""
    cost = duration = 0
    for run in range(runs):
        provider = Provider(np.random.default_rng((run, *case)))
        ratios, tries = provider.items(case.seen)
        experiences = [Experience(KIND, float(ratio), int(n)) for ratio, n in zip(ratios, tries, strict=True)]
        history = History(experiences, {"1K": provider.latencies(case.seen).tolist()})
        work = {KIND: Work(case.items, case.items * EXPECTED_MICROS)}
        found = forecast(load_spec(), work, history, Pace(case.in_flight, None), seed=run, draws=400)
        spent, attempts = provider.items(case.items)
        cost += found.cost.p10 <= spent.sum() * EXPECTED_MICROS <= found.cost.p90
        took = _makespan(provider.latencies(int(attempts.sum())), case.in_flight)
        duration += found.duration_s.p10 <= took <= found.duration_s.p90
    return Coverage(cost / runs, duration / runs)


def _makespan(latencies: Floats, in_flight: int) -> float:
    """How long it takes to work through tasks in order, so many at once."""
    busy: list[float] = []
    for latency in latencies:
        begins = heapq.heappop(busy) if len(busy) == in_flight else 0.0
        heapq.heappush(busy, begins + float(latency))
    return max(busy)


def main() -> int:
    """Print the table."""
    sys.stdout.write(
        "| forecast from | items | in flight | cost within P10 to P90 | duration within P10 to P90 |\n"
        "| --- | --- | --- | --- | --- |\n"
    )
    for case in CASES:
        found = coverage(case)
        shares = f"{found.cost:.1%} | {found.duration:.1%}".replace("%", " %")
        sys.stdout.write(f"| {case.seen} items | {case.items:,} | {case.in_flight} | {shares} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
