"""A running shard's progress in Dagster: a line in its log and an observation on its asset's page, now and then.

Every one of them is a row in Dagster's database, written while the engine waits; so the longer a run takes, the rarer
they become.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.orchestration.metadata import Metadata
from nanobanana_pipeline.reporting.costs import shown

_FIRST_GAP_S: Final = 5.0
_LONGEST_GAP_S: Final = 300.0
_FIRST_OBSERVATION_S: Final = 10.0
_OBSERVATION_FACTOR: Final = 1.6
_MINUTE: Final = 60


@dataclass(slots=True)
class Progress:
    """Told of the tally every second, logs tens of lines however long the run takes."""

    log: Callable[[str], None]
    observe: Callable[[Metadata], None]
    total: int
    began: float = field(default_factory=time.monotonic)
    line_due_s: float = _FIRST_GAP_S
    observation_due_s: float = _FIRST_OBSERVATION_S

    def __call__(self, tally: Tally) -> None:
        """Log a line and make an observation, if they are due."""
        elapsed_s = time.monotonic() - self.began
        if elapsed_s >= self.line_due_s:
            self.line_due_s = next_line_s(elapsed_s)
            self.log(progress_line(tally, self.total, elapsed_s))
        if elapsed_s >= self.observation_due_s:
            self.observation_due_s = next_observation_s(elapsed_s)
            try:
                self.observe(progress_numbers(tally, self.total, elapsed_s))
            except Exception as error:  # noqa: BLE001 - whatever Dagster's storage has: the work goes on without it
                self.log(f"where the run is can't be shown on its asset's page now: {' '.join(str(error).split())}")


def next_line_s(elapsed_s: float) -> float:
    """When the line after one at `elapsed_s` is due: ever rarer, so that an hour has about 45 lines."""
    return elapsed_s + min(max(_FIRST_GAP_S, elapsed_s / 10), _LONGEST_GAP_S)


def next_observation_s(elapsed_s: float) -> float:
    """When the observation after one at `elapsed_s` is due: about ten in the first hour, twenty in a day."""
    return elapsed_s * _OBSERVATION_FACTOR


def progress_numbers(tally: Tally, total: int, elapsed_s: float) -> Metadata:
    """Where a run stands, in numbers that Dagster can plot; times in seconds."""
    done = tally.finished
    left_s = (total - done) * elapsed_s / done if 0 < done < total else None
    return {
        "progress": progress_line(tally, total, elapsed_s),
        "done": done,
        "items": max(total, done),
        "spent_usd": tally.cost_micros / 1_000_000,
        "elapsed_s": round(elapsed_s, 1),
        **({} if left_s is None else {"left_s": round(left_s, 1)}),
    }


def progress_line(tally: Tally, total: int, elapsed_s: float) -> str:
    """Where a run stands, how fast it is, what it has spent, and when it should be done."""
    done = tally.finished
    a_minute = 60 * done / elapsed_s if elapsed_s > 0 else 0.0
    parts = [
        f"{done:,}/{max(total, done):,} done",
        f"{tally.in_flight:,} in flight",
        f"{a_minute:,.0f} a minute",
        f"{shown(tally.cost_micros)} spent",
    ]
    trouble = {"failed": tally.failed, "unknown": tally.unknown + tally.overdue, "deferred": tally.deferred}
    parts += [f"{count:,} {what}" for what, count in trouble.items() if count]
    if 0 < done < total:
        parts.append(f"about {duration((total - done) * elapsed_s / done)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    minutes, rest = divmod(whole, _MINUTE)
    return f"{minutes} min {rest} s" if minutes < _MINUTE else f"{minutes // _MINUTE} h {minutes % _MINUTE} min"
