"""Simulated time: the wall clock plus whatever a test has skipped, and the things that fall due in it.

Only time is here. What happens when a task falls due is the provider's business.
"""

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]

_LONGEST_TIMER_S = 86_400.0  # event loops have a limit; what is due later is looked at again then


class Clock:
    """Seconds since the epoch, in simulated time, and an agenda kept on the running event loop."""

    def __init__(self, *, not_before: float = 0.0) -> None:
        # A book written under a clock that had been advanced holds times that the wall clock has yet to reach.
        self._skipped = max(0.0, not_before - time.time())
        self._agenda: list[tuple[float, int, Action]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")

    def now(self) -> float:
        """Simulated seconds since the epoch."""
        return time.time() + self._skipped

    def at(self, due: float, action: Action) -> None:
        """Do `action` when simulated time reaches `due`; infinity is never."""
        if due == float("inf"):
            return
        heapq.heappush(self._agenda, (due, next(self._order), action))
        if due < self._timer_due:
            self._set_timer()

    def settle(self) -> None:
        """Do everything that is due by now: readers call it, so that no answer depends on a timer's punctuality."""
        now = self.now()
        while self._agenda and self._agenda[0][0] <= now:
            heapq.heappop(self._agenda)[2]()

    def advance(self, seconds: float) -> None:
        """Skip `seconds` of simulated time and do all that falls due in them."""
        self._skipped += seconds
        self.settle()
        self._set_timer()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of simulated time; `advance` cuts the wait short."""
        awake = asyncio.Event()
        self.at(self.now() + seconds, awake.set)
        await awake.wait()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_due = None, float("inf")
        if self._agenda:
            due = self._agenda[0][0]
            self._timer_due = due
            delay = min(max(0.0, due - self.now()), _LONGEST_TIMER_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        self.settle()
        self._set_timer()
