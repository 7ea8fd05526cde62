"""When to ask next whether a task has ended.

At equal lag a back-off that grows from the start costs more polls than a fixed gap (`make bench`). So the first
question comes when the quickest of recent tasks had ended, then at a fixed gap; only a task far beyond the usual is
asked about less often. Where latencies are spread widely that first wait saves no polls and adds lag, so it is skipped;
there, the longer a task has taken the longer it is going to take, and the gap grows with the square root of its age.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar, Final
from weakref import WeakValueDictionary

_WINDOW: Final = 200
_ENOUGH: Final = 20
"""Latencies needed before they are trusted."""
_WIDE: Final = 6.0
"""90th over 10th percentile (log-normal sigma of about 0.7) above which the learnt first wait is skipped."""
_FIRST_SHARE: Final = 0.18
"""Share of recent tasks that had ended when the first question came. Simulated: near the fewest polls at equal lag."""
_UNLEARNT_GAP_S: Final = 0.25
_UNLEARNT_LONGEST_S: Final = 2.0
_SCOUTS: Final = 2 * _ENOUGH
"""Tasks that are asked about early while nothing is learnt; a thousand others learn as much from their answers."""
_BEHIND_SCOUTS_S: Final = 3.0
"""The age at which one of the others is asked about all the same, and then at each doubling of it."""
_SHORTEST_GAP_S: Final = 0.1
_LONGEST_GAP_S: Final = 10.0
_LAG_SHARE: Final = 0.05
"""Wanted mean lag as a share of the median latency."""
_STRETCH: Final = 1.5
_LONGEST_STRETCHED_S: Final = 30.0


class Latencies:
    """The recent latencies (seconds) of one model and resolution, and the polling times they suggest."""

    def __init__(self, history: Iterable[float] = ()) -> None:
        self._window: deque[float] = deque(history, maxlen=_WINDOW)
        self._sorted: list[float] | None = None
        self._scouts = 0

    def observe(self, latency_s: float) -> None:
        """Add the latency of a task that has just ended."""
        self._window.append(latency_s)
        self._sorted = None

    @property
    def learnt(self) -> bool:
        """Whether there are enough latencies to go by."""
        return len(self._window) >= _ENOUGH

    def percentile(self, share: float) -> float:
        """The latency that `share` of the recent tasks did not exceed."""
        # Another thread may observe meanwhile; then what is kept lacks its latency until the next one.
        known = self._sorted
        if known is None:
            known = self._sorted = sorted(self._window)
        return known[min(len(known) - 1, int(share * len(known)))]

    @property
    def _wide(self) -> bool:
        low = self.percentile(0.1)
        return low <= 0 or self.percentile(0.9) / low > _WIDE

    @property
    def gap_s(self) -> float:
        """The fixed gap between polls: twice the wanted mean lag."""
        return min(_LONGEST_GAP_S, max(_SHORTEST_GAP_S, 2 * _LAG_SHARE * self.percentile(0.5)))

    def send_scout(self) -> bool:
        """Whether one more task, just submitted, is to be asked about early: while nothing is learnt, some have to be.

        The others wait for what these tell; see `learnt`.
        """
        if self.learnt or self._scouts >= _SCOUTS:
            return False
        self._scouts += 1
        return True

    def first_poll_s(self, *, scout: bool = False) -> float:
        """Seconds after the submit at which to ask for the first time."""
        if not self.learnt:
            return _UNLEARNT_GAP_S if scout else _BEHIND_SCOUTS_S
        return self.gap_s if self._wide else max(self.percentile(_FIRST_SHARE), _SHORTEST_GAP_S)

    def next_poll_s(self, age_s: float, *, scout: bool = False) -> float:
        """Seconds until the next question, for a task that was submitted `age_s` ago and has not ended."""
        if not self.learnt:
            if scout:
                return min(_UNLEARNT_LONGEST_S, max(_UNLEARNT_GAP_S, age_s / 2))
            return min(_LONGEST_STRETCHED_S, max(_BEHIND_SCOUTS_S, age_s))
        gap = self.gap_s
        if self._wide:
            return min(_LONGEST_STRETCHED_S, gap * max(1.0, age_s / max(self.percentile(0.75), _SHORTEST_GAP_S)) ** 0.5)
        usual = 3 * self.percentile(0.95)
        if age_s <= usual:
            return gap
        return min(_LONGEST_STRETCHED_S, max(gap, gap * _STRETCH * age_s / usual))


class PollSchedule:
    """Latencies by resolution, for one model. Event loops of several threads may share it; see `shared`."""

    _open: ClassVar[WeakValueDictionary[tuple[str, str], "PollSchedule"]] = WeakValueDictionary()
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, history: dict[str, list[float]] | None = None) -> None:
        self._by_resolution = {name: Latencies(known) for name, known in (history or {}).items()}
        self._lock = threading.Lock()
        self._new: dict[str, list[float]] = {}

    @classmethod
    def shared(cls, ledger: str, model: str, history: Callable[[], dict[str, list[float]]]) -> "PollSchedule":
        """The one that all shards at work in this process go by; made from the ledger's `history` by the first.

        With one for each shard, each would send scouts of its own to learn the same.
        """
        with cls._opening:
            schedule = cls._open.get((ledger, model))
            if schedule is None:
                schedule = cls._open[ledger, model] = cls(history())
            return schedule

    def of(self, resolution: str) -> Latencies:
        """What is known of a resolution."""
        return self._by_resolution.setdefault(resolution, Latencies())

    def observe(self, resolution: str, latency_s: float) -> None:
        """Add the latency of a task that has just ended."""
        self.of(resolution).observe(latency_s)
        with self._lock:
            self._new.setdefault(resolution, []).append(latency_s)

    def drain(self) -> dict[str, list[float]]:
        """What was observed since the last call, to be remembered in the ledger."""
        with self._lock:
            new, self._new = self._new, {}
        return new
