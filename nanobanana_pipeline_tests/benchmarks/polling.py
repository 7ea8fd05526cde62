"""The learnt polling rule beside a fixed gap, a growing one, and the best that anybody could do, at equal lag.

Simulated: log-normal latencies, the rule fed with what it would have seen. The optimum knows the distribution and finds
the times of questions that cost least (dynamic programming over a grid of times).
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from nanobanana_pipeline.generation.polling import Latencies, PollSchedule
from nanobanana_pipeline_tests.benchmarks.measuring import Section, table

SIGMAS: Final = (0.25, 0.5, 1.2)
_MEDIAN_S: Final = 10.0
_TASKS: Final = 4000
_SEEN_AT_ONCE: Final = 0.8  # as in `lifecycle`
_GRID: Final = 1000
_STEPS: Final = 18

Times = Callable[[float], Iterator[float]]
"""The ages at which one task is asked about, by a rule's parameter: the larger, the more lag."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule costs: mean polls an item, and mean lag in seconds."""

    polls: float
    lag_s: float


def measure() -> Section:
    """Every rule at every spread."""
    rows: list[list[object]] = []
    figures: dict[str, dict[str, float]] = {}
    for sigma in SIGMAS:
        found = compared(sigma)
        learnt, best = found["learnt"], found["optimum"]
        figures[str(sigma)] = {"lag_s": learnt.lag_s} | {name: outcome.polls for name, outcome in found.items()}
        rows.append(
            [
                f"{sigma:g}",
                f"{learnt.lag_s / _MEDIAN_S * 100:.1f} %",
                f"{learnt.polls:.2f}",
                f"{found['fixed'].polls:.2f}",
                f"{found['growing'].polls:.2f}",
                f"{best.polls:.2f}",
                f"{learnt.polls / best.polls:.2f}",
            ]
        )
    header = ["sigma", "lag of median", "learnt", "fixed gap", "growing gap", "optimum", "learnt / optimum"]
    text = f"Mean polls an item at equal mean lag; {_TASKS:,} simulated tasks a row.\n\n" + table(header, rows)
    return Section("polling", text, figures)


def compared(sigma: float) -> dict[str, Outcome]:
    """Each rule at the mean lag of the learnt one."""
    latencies = _latencies(sigma)
    learnt = _learnt(latencies)
    return {
        "learnt": learnt,
        "fixed": _at_lag(learnt.lag_s, partial(_tried, latencies, _fixed)),
        "growing": _at_lag(learnt.lag_s, partial(_tried, latencies, _growing)),
        "optimum": _at_lag(learnt.lag_s, partial(_optimum, sigma)),
    }


def _latencies(sigma: float) -> list[float]:
    draw = random.Random(11)
    return [_MEDIAN_S * math.exp(draw.gauss(0, sigma)) for _ in range(_TASKS)]


def _learnt(latencies: list[float]) -> Outcome:
    """The product's rule, learning as it goes."""
    schedule = PollSchedule()
    polls = lag_s = 0.0
    for latency in latencies:
        known = schedule.of("1K")
        for asked, age_s in enumerate(_ages(known), 1):
            if age_s >= latency:
                schedule.observe("1K", age_s * (_SEEN_AT_ONCE if asked == 1 else 1.0))
                polls += asked
                lag_s += age_s - latency
                break
    return Outcome(polls / len(latencies), lag_s / len(latencies))


def _ages(known: Latencies) -> Iterator[float]:
    scout = known.send_scout()
    age_s = known.first_poll_s(scout=scout)
    while True:
        yield age_s
        age_s += known.next_poll_s(age_s, scout=scout)


def _tried(latencies: list[float], times: Times, parameter: float) -> Outcome:
    polls = lag_s = 0.0
    for latency in latencies:
        for age_s in times(parameter):
            polls += 1
            if age_s >= latency:
                lag_s += age_s - latency
                break
    return Outcome(polls / len(latencies), lag_s / len(latencies))


def _fixed(gap_s: float) -> Iterator[float]:
    age_s = 0.0
    while True:
        age_s += gap_s
        yield age_s


def _growing(growth: float) -> Iterator[float]:
    """A back-off from a second on: each question at so much more of the task's age."""
    age_s = 1.0
    while True:
        yield age_s
        age_s *= 1 + growth / 10


def _optimum(sigma: float, worth_s: float) -> Outcome:
    """The best times of questions when one costs as much as `worth_s` seconds of lag, and what they come to."""
    ages = np.concatenate([[0.0], _MEDIAN_S * np.exp(sigma * np.linspace(-4, 4.5, _GRID))])
    ended = np.concatenate([[0.0], [_share_ended(age, sigma) for age in ages[1:]]])
    # Mean of the latency over those that end before each age: for the lag between two of them.
    middle = (ages[1:] + ages[:-1]) / 2
    mass = np.concatenate([[0.0], np.cumsum(np.diff(ended) * middle)])
    cost = np.zeros(len(ages))
    following = np.zeros(len(ages), dtype=int)
    for now in range(len(ages) - 2, -1, -1):
        left = max(1 - ended[now], 1e-12)
        later = slice(now + 1, None)
        lag = ages[later] * (ended[later] - ended[now]) - (mass[later] - mass[now])
        total = 1 + (lag / worth_s + (1 - ended[later]) * cost[later]) / left
        best = int(np.argmin(total))
        cost[now], following[now] = total[best], now + 1 + best
    polls = lag_s = 0.0
    now = 0
    while now < len(ages) - 1:
        then = int(following[now])
        polls += 1 - ended[now]
        lag_s += ages[then] * (ended[then] - ended[now]) - (mass[then] - mass[now])
        now = then
    return Outcome(float(polls), float(lag_s))


def _share_ended(age_s: float, sigma: float) -> float:
    return 0.5 * math.erfc(-math.log(age_s / _MEDIAN_S) / sigma / math.sqrt(2))


def _at_lag(lag_s: float, rule: Callable[[float], Outcome]) -> Outcome:
    """The rule with the parameter, larger for more lag, at which its mean lag is `lag_s`."""
    low, high = 0.002, 50.0
    outcome = Outcome(0, 0)
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        outcome = rule(middle)
        low, high = (low, middle) if outcome.lag_s > lag_s else (middle, high)
    return outcome
