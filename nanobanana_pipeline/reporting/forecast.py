"""What some work will cost and how long it will take, as percentiles, from experience or, before any, from the spec.

Pure arithmetic. Two things make a forecast uncertain: the luck of so many items, and how little is known of the
provider. Both are in it: each simulated run draws what the provider is like (weights over what was seen, by the
Bayesian bootstrap) and then the items' luck under that. The intervals are tested against simulated runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.reporting.history import Experience, History, Kind

DRAWS: Final = 2_000
_ENOUGH: Final = 30
"""Experiences of a narrower kind that are believed more than many of a wider one."""
_BINS: Final = 64
_CREDENCE: Final = 0.85
"""How much an experience counts. At 1 intervals were too narrow (75 % for 80 %): rare failures are seen too rarely."""
_LATENCY_CREDENCE: Final = 0.5
"""As much for latencies, whose largest matter most and are seen least: at 0.7 a long run kept to 75 %."""
_MOST_LATENCIES: Final = 400
_MOST_IN_SERVICE: Final = 512
# Before any experience: a twentieth of the items fails for good, give or take, unbilled.
_PRIOR_SUCCESSES, _PRIOR_FAILURES = 19.0, 1.0
# How far the true amount of text, and of tokens in a character, may be from what the spec calls typical.
_PRIOR_TEXT_SPREAD: Final = 0.9
_PRIOR_PRICE_SPREAD: Final = 0.1

Floats = npt.NDArray[np.floating]


class Range(NamedTuple):
    """The 10th, 50th and 90th percentile."""

    p10: float
    p50: float
    p90: float


@dataclass(slots=True)
class Work:
    """Items of one kind that are to be made, with their expected costs summed (micro-dollars)."""

    items: int = 0
    expected_micros: float = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast work can go: tasks at the provider at once, and submits a minute (None: no limit)."""

    in_flight: int
    requests_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """`cost` in micro-dollars, `duration_s` in seconds; `experiences` is how many finished items it goes by."""

    cost: Range
    duration_s: Range
    attempts: Range
    experiences: int


def forecast(
    spec: ModelSpec, work: Mapping[Kind, Work], history: History, pace: Pace, *, seed: int = 0, draws: int = DRAWS
) -> Forecast:
    """Forecast some work. The same work, history and seed give the same forecast."""
    random = np.random.default_rng(seed)
    cost = np.zeros(draws)
    attempts = np.zeros(draws)
    by_resolution: dict[str, Floats] = {}
    pools: dict[tuple[object, ...], _Pool] = {}
    prior = _Prior(spec, random, draws)
    for kind, wanted in work.items():
        if not wanted.items:
            continue
        near, experiences = _of_kind(history.experiences, kind)
        if experiences:
            # Kinds that go by the same experiences must believe the same of them in each simulated run.
            if near not in pools:
                pools[near] = _Pool(experiences, random, draws)
            ratios, tries = pools[near].totals(wanted.items)
        else:
            ratios, tries = prior.totals(wanted.items)
        cost += ratios * wanted.expected_micros / wanted.items
        attempts += tries
        by_resolution[kind.resolution] = by_resolution.get(kind.resolution, np.zeros(draws)) + tries
    duration = _durations(spec, by_resolution, history.latencies, pace, random, draws)
    return Forecast(_range(cost), _range(duration), _range(attempts), len(history.experiences))


def _of_kind(experiences: Sequence[Experience], kind: Kind) -> tuple[tuple[object, ...], list[Experience]]:
    """What there is for a kind, as near to it as there is enough of, and what these have in common.

    Empty without enough of any kind. Costs are multiples of what the spec expects, so what was seen of one resolution
    says something of another.
    """
    for common in (3, 2, 1, 0):
        near = tuple(kind[:common])
        found = [one for one in experiences if one.kind[:common] == near]
        if len(found) >= _ENOUGH:
            return near, found
    return (), []


class _Pool:
    """Experiences that some items are drawn from, with what each simulated run believes of them."""

    def __init__(self, experiences: Sequence[Experience], random: np.random.Generator, draws: int) -> None:
        ordered = sorted((one.ratio, one.attempts) for one in experiences)
        groups = np.array_split(np.array(ordered, dtype=np.float64), min(_BINS, len(ordered)))
        self._values = np.array([group.mean(axis=0) for group in groups])
        # Dirichlet weights over bins are those of the Bayesian bootstrap over what is in them, summed up.
        self._weights = random.dirichlet([len(group) * _CREDENCE for group in groups], size=draws)
        self._random = random

    def totals(self, items: int) -> tuple[Floats, Floats]:
        """For each simulated run: the sum of the cost ratios of so many items, and of their attempts."""
        drawn = self._random.multinomial(items, self._weights)
        sums: Floats = drawn.astype(np.float64) @ self._values
        return sums[:, 0], sums[:, 1]


class _Prior:
    """What the spec alone lets us believe: each simulated run has a provider of its own making."""

    def __init__(self, spec: ModelSpec, random: np.random.Generator, draws: int) -> None:
        self._random = random
        self._success = random.beta(_PRIOR_SUCCESSES, _PRIOR_FAILURES, size=draws)
        text = np.exp(random.normal(0.0, _PRIOR_TEXT_SPREAD, size=draws))
        self._ratio = (1 + self._text_share(spec) * (text - 1)) * np.exp(
            random.normal(0.0, _PRIOR_PRICE_SPREAD, size=draws)
        )

    def totals(self, items: int) -> tuple[Floats, Floats]:
        """As `_Pool.totals`."""
        succeeded = self._random.binomial(items, self._success)
        return succeeded * self._ratio, items + (items - succeeded) * 2.0

    @staticmethod
    def _text_share(spec: ModelSpec) -> float:
        """The share of text in the expected cost of an image of the default resolution."""
        prices = spec.prices[-1]
        text = spec.estimates.typical_text_tokens * float(prices.text_output_per_million) / 1e6
        whole = text + float(prices.image_per_resolution[spec.default_resolution])
        return text / whole if whole else 0.0


def _durations(
    spec: ModelSpec,
    attempts: Mapping[str, Floats],
    latencies: Mapping[str, Sequence[float]],
    pace: Pace,
    random: np.random.Generator,
    draws: int,
) -> Floats:
    """Seconds that each simulated run takes, with `pace.in_flight` tasks at once."""
    if not attempts:
        return np.zeros(draws)
    count = np.maximum(1, np.rint(sum(attempts.values(), np.zeros(draws)))).astype(np.int64)
    seen = {resolution: _latencies(spec, latencies, resolution) for resolution in attempts}
    work, first, second = np.zeros(draws), np.zeros(draws), np.zeros(draws)
    for resolution, tries in attempts.items():
        pool = seen[resolution]
        weights = random.dirichlet(np.full(len(pool), _LATENCY_CREDENCE), size=draws)
        work += random.multinomial(np.rint(tries).astype(np.int64), weights) @ pool
        share, logs = tries.sum(), np.log(pool)
        first += share * (weights @ logs)
        second += share * (weights @ logs**2)
    # The end depends on the longest latencies, which a few hundred seen ones do not hold: there a log-normal is fitted,
    # in each simulated run to what it believes of latencies. One that thinks them long waits longer for the last, too.
    shares = sum(float(tries.sum()) for tries in attempts.values())
    middle = (first / shares)[:, None]
    spread = np.sqrt(np.maximum(second / shares - middle[:, 0] ** 2, 1e-6))[:, None]
    at_once = min(pace.in_flight, _MOST_IN_SERVICE)
    normal = random.standard_normal((draws, at_once))
    # What is at the provider when the last task is sent: those that run for longer are met more often.
    in_service = np.exp(middle + spread * (normal + spread)) * random.random((draws, at_once))
    queued = (work - in_service.mean(axis=1) * pace.in_flight) / pace.in_flight + in_service.max(axis=1)
    # Too few to fill the provider: it takes as long as the longest of them.
    few = np.exp(middle + spread * normal)
    few[np.arange(at_once)[None, :] >= count[:, None]] = 0.0
    duration = np.where(count <= pace.in_flight, few.max(axis=1), queued)
    if pace.requests_per_minute is not None:
        sending = count * 60.0 / pace.requests_per_minute
        duration = np.maximum(duration, sending + np.exp(middle[:, 0]))
    return duration


def _latencies(spec: ModelSpec, latencies: Mapping[str, Sequence[float]], resolution: str) -> Floats:
    """Latencies to draw from: of the resolution, of any when there are too few, or as the spec expects."""
    own = latencies.get(resolution, ())
    if len(own) < _ENOUGH:
        own = [latency for others in latencies.values() for latency in others]
    if len(own) >= _ENOUGH:
        return np.asarray(own[-_MOST_LATENCIES:], dtype=np.float64)
    low, middle, high = spec.estimates.latency_s
    # Evenly spaced percentiles of the log-normal through the three that the spec has.
    return np.exp(np.interp(np.linspace(0.02, 0.98, 50), (0.1, 0.5, 0.9), np.log((low, middle, high))))


def _range(values: Floats) -> Range:
    return Range(*(float(value) for value in np.quantile(values, (0.1, 0.5, 0.9))))
