"""When to ask next whether a task has ended.

Measured beforehand: at equal lag a growing back-off costs more polls than a fixed gap. So the first question comes
when the quickest tenth of recent tasks had ended, then at a fixed gap; only a task far beyond the usual is asked about
less often. Where latencies are spread widely the wait for the first tenth saves no polls and adds lag, so it is
skipped.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

_WINDOW: Final = 200
_ENOUGH: Final = 20
"""Latencies needed before they are trusted."""
_WIDE: Final = 6.0
"""90th over 10th percentile (log-normal sigma of about 0.7) above which the learnt first wait is skipped."""
_UNLEARNT_GAP_S: Final = 0.25
_UNLEARNT_LONGEST_S: Final = 2.0
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
        if self._sorted is None:
            self._sorted = sorted(self._window)
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]

    @property
    def gap_s(self) -> float:
        """The fixed gap between polls: twice the wanted mean lag."""
        return min(_LONGEST_GAP_S, max(_SHORTEST_GAP_S, 2 * _LAG_SHARE * self.percentile(0.5)))

    def first_poll_s(self) -> float:
        """Seconds after the submit at which to ask for the first time."""
        if not self.learnt:
            return _UNLEARNT_GAP_S
        low = self.percentile(0.1)
        if low <= 0 or self.percentile(0.9) / low > _WIDE:
            return self.gap_s
        return max(low, _SHORTEST_GAP_S)

    def next_poll_s(self, age_s: float) -> float:
        """Seconds until the next question, for a task that was submitted `age_s` ago and has not ended."""
        if not self.learnt:
            return min(_UNLEARNT_LONGEST_S, max(_UNLEARNT_GAP_S, age_s / 4))
        gap = self.gap_s
        usual = 3 * self.percentile(0.95)
        if age_s <= usual:
            return gap
        return min(_LONGEST_STRETCHED_S, max(gap, gap * _STRETCH * age_s / usual))


class PollSchedule:
    """Latencies by resolution, for one model."""

    def __init__(self, history: dict[str, list[float]] | None = None) -> None:
        self._by_resolution = {name: Latencies(known) for name, known in (history or {}).items()}
        self._new: dict[str, list[float]] = {}

    def of(self, resolution: str) -> Latencies:
        """What is known of a resolution."""
        return self._by_resolution.setdefault(resolution, Latencies())

    def observe(self, resolution: str, latency_s: float) -> None:
        """Add the latency of a task that has just ended."""
        self.of(resolution).observe(latency_s)
        self._new.setdefault(resolution, []).append(latency_s)

    def drain(self) -> dict[str, list[float]]:
        """What was observed since the last call, to be remembered in the ledger."""
        new, self._new = self._new, {}
        return new
