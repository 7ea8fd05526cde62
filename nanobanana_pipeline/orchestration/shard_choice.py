"""Which shards to start now: the arithmetic of `generation_sensor` and `nightly_generation`, on plain values.

Everything here is a pure function of what the caller has looked up, so every rule can be shown in a test of a few
lines. The rules keep an unattended pipeline from two things: leaving work lie, and trying in vain over and over.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.states import Holding, ItemState
from nanobanana_pipeline.ledger.work import ShardWork

_LOOKED_UP_AT_ONCE: Final = 50
_LONGEST_PAUSE_S: Final = 3600.0
_AFTER_PENDING_S: Final = 60.0
_AFTER_WAITING_S: Final = 600.0
"""Deferred items wait for room, overdue ones for a late answer: neither comes by the minute."""
_AFTER_ABANDONED_S: Final = 30.0
_AFTER_BROKEN_S: Final = 300.0
_BRAKE_S: Final = 60.0


class End(StrEnum):
    """How a run of generation ended."""

    SUCCEEDED = "succeeded"
    STOPPED = "stopped by a person"
    UNAPPROVED = "ended to wait for a person's approval"
    BROKEN = "failed with an error that a person has to mend"
    ABANDONED = "killed, or stopped together with its machine"


class Waiting(StrEnum):
    """Why a shard with work left isn't started."""

    RUNNING = "a run is under way"
    AT_WORK = "another process is at work on it"
    STOPPED = "a person stopped it: start it again yourself, or change its catalogue"
    PAUSING = "tried a short while ago"
    NO_ROOM = "the cap has no room"
    UNAPPROVED = "a person has to approve what they may cost"
    IN_TURN = "its turn comes when others are done"


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run that is over; `ended_at` in seconds since the epoch."""

    shard: str
    end: End
    ended_at: float


PastOf = Callable[[Sequence[str]], Sequence[PastRun]]
"""Looks up the latest runs of some shards, in any order."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known besides the work itself and past runs. Times in seconds since the epoch."""

    now: float
    active: frozenset[str] = frozenset()
    """Shards with a run that is queued or under way."""
    at_work: frozenset[str] = frozenset()
    """Shards that some process holds a lease on."""
    registered_at: Mapping[str, float] = field(default_factory=dict)
    """When each catalogue was last entered."""
    full_catalogues: frozenset[str] = frozenset()
    """Catalogues for whose items no cap has room."""
    unapproved: Mapping[str, str] = field(default_factory=dict)
    """Catalogues whose items wait for a person's approval, each with the plan to approve."""
    resubmits_unknown: bool = False


@dataclass(slots=True)
class Choice:
    """Shards to start, in order, and why the others wait."""

    start: list[str] = field(default_factory=list)
    waiting: Counter[Waiting] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = "; ".join(f"{count:,}: {why}" for why, count in self.waiting.most_common())
        return reasons or "no shard has work left"


def choose(shards: Sequence[ShardWork], facts: Facts, past_of: PastOf, *, most: int, pausing: bool = True) -> Choice:
    """The shards to start now, at most so many: first those with work under way, which may be paid for already.

    Then those with the item of the highest priority that waits. `pausing` leaves alone what was tried a short while
    ago: who comes by once a night would leave it until the next.

    Past runs are looked up for a few shards at a time, and no further than needed.
    """
    choice = Choice()
    ready: list[ShardWork] = []
    wanting = (work for work in shards if has_work(work, facts))
    for work in sorted(wanting, key=lambda work: (not _under_way(work), -work.priority)):
        reason = _reason_now(work, facts)
        if reason is None:
            ready.append(work)
        else:
            choice.waiting[reason] += 1
    for first in range(0, len(ready), _LOOKED_UP_AT_ONCE):
        if len(choice.start) >= most:
            choice.waiting[Waiting.IN_TURN] += len(ready) - first
            break
        page = ready[first : first + _LOOKED_UP_AT_ONCE]
        past: dict[str, list[PastRun]] = {}
        for run in sorted(past_of([work.shard for work in page]), key=lambda run: -run.ended_at):
            past.setdefault(run.shard, []).append(run)
        for work in page:
            reason = _reason_in_past(work, facts, past.get(work.shard, ()), pausing=pausing)
            if reason is None and len(choice.start) < most:
                choice.start.append(work.shard)
            else:
                choice.waiting[reason or Waiting.IN_TURN] += 1
    return choice


def has_work(work: ShardWork, facts: Facts) -> bool:
    """Whether a run of the shard could do anything about its items."""
    return work.left > 0 or (facts.resubmits_unknown and work.states.get(ItemState.UNKNOWN, 0) > 0)


def brake_s(past: Sequence[PastRun], now: float) -> float:
    """Seconds to start nothing at all, after the latest runs of all shards failed for a person to mend.

    A wrong key or an empty account fails every shard alike: without this, thousands of runs would tell it.
    """
    newest_first = sorted(past, key=lambda run: -run.ended_at)
    broken = _leading(newest_first, (End.BROKEN,))
    if not broken:
        return 0.0
    return max(0.0, newest_first[0].ended_at + min(_BRAKE_S * 2 ** (broken - 1), _LONGEST_PAUSE_S) - now)


def full_catalogues(
    catalogues: Sequence[str], caps: Caps, counters: Mapping[str, Holding], *, day: str, needed: int
) -> frozenset[str]:
    """The catalogues for whose items neither more nor less than `needed` micro-dollars are left under some cap."""
    if not _fits(f"day:{day}", caps.day, counters, needed):
        return frozenset(catalogues)
    return frozenset(name for name in catalogues if not _fits(f"catalogue:{name}", caps.catalogue, counters, needed))


def _fits(scope: str, cap: int | None, counters: Mapping[str, Holding], needed: int) -> bool:
    return cap is None or sum(counters.get(scope, Holding())) + needed <= cap


def _reason_now(work: ShardWork, facts: Facts) -> Waiting | None:
    if work.shard in facts.active:
        return Waiting.RUNNING
    if work.shard in facts.at_work:
        return Waiting.AT_WORK
    if work.catalogue in facts.full_catalogues and not _under_way(work):
        return Waiting.NO_ROOM
    if work.catalogue in facts.unapproved and not _under_way(work):
        return Waiting.UNAPPROVED
    return None


def _reason_in_past(work: ShardWork, facts: Facts, past: Sequence[PastRun], *, pausing: bool) -> Waiting | None:
    if not past:
        return None
    latest = past[0]
    if latest.end is End.UNAPPROVED and not _under_way(work):
        # Approved meanwhile, or it would not have come so far.
        return None
    if latest.end is End.STOPPED:
        changed = facts.registered_at.get(work.catalogue, 0.0) > latest.ended_at
        return None if changed else Waiting.STOPPED
    return Waiting.PAUSING if pausing and facts.now < latest.ended_at + _pause_s(work, past) else None


def _pause_s(work: ShardWork, past: Sequence[PastRun]) -> float:
    """How long to leave a shard alone after its latest run: each failure in a row doubles it, up to an hour."""
    if past[0].end in {End.SUCCEEDED, End.UNAPPROVED}:
        return _AFTER_PENDING_S if work.states.get(ItemState.PENDING) else _AFTER_WAITING_S
    failures = _leading(past, (End.BROKEN, End.ABANDONED))
    if past[0].end is End.BROKEN:
        return min(_AFTER_BROKEN_S * 2 ** (failures - 1), _LONGEST_PAUSE_S)
    # Killed once, it goes on at once.
    return 0.0 if failures <= 1 else min(_AFTER_ABANDONED_S * 2 ** (failures - 2), _LONGEST_PAUSE_S)


def _leading(past: Sequence[PastRun], ends: tuple[End, ...]) -> int:
    count = 0
    for run in past:
        if run.end not in ends:
            break
        count += 1
    return count


def _under_way(work: ShardWork) -> bool:
    return work.states.get(ItemState.OPEN, 0) > 0
