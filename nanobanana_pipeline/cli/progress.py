"""How a run looks while it goes on: a bar on a terminal, a line now and then elsewhere. Always on standard error."""

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from nanobanana_pipeline.cli.console import clock, counted, dollars, note, on_terminal, told_above

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from nanobanana_pipeline.generation.tally import Tally

_LINE_EVERY_S: Final = 10.0
_FIRST_COUNT_S: Final = 2.0
_WINDOW_S: Final = 60.0
"""The rate is that of the last minute: what was long ago says little of what is to come."""


class ProgressDisplay:
    """Shows a run; a context manager, since the terminal must be left as it was found."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._drawing = ExitStack()
        self._items = 0
        self._pace = Pace()
        self._line_due = 0.0
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def phase(self, text: str) -> None:
        """Something that can't be counted begins."""
        self._close()
        self._items = 0
        if not self._quiet:
            note(f"{text} …")

    def generating(self, items: int, shards: int) -> None:
        """Generation begins."""
        self._items = items
        if self._quiet:
            return
        note(f"{counted(items, 'item')} to do in {counted(shards, 'shard')}")
        if on_terminal():
            self._open()

    def tick(self, tally: "Tally") -> None:
        """Show where the run stands."""
        if self._quiet or not self._items:
            return
        done = tally.finished
        self._pace.at(time.monotonic(), done)
        if self._bar is not None and self._task is not None:
            # As in `note`: nothing ends because the terminal is gone.
            with suppress(OSError):
                pace = self._pace.shown(self._items - done)
                self._bar.update(self._task, completed=done, facts=facts(tally), pace=pace)
        elif not on_terminal() and done > self._shown and time.monotonic() >= self._line_due:
            self._line_due, self._shown = time.monotonic() + _LINE_EVERY_S, done
            note(f"{done:,}/{self._items:,} items · {self._pace.shown(self._items - done)} · {facts(tally)}")

    def stopping(self) -> None:
        """A stop was asked for."""
        self._close()
        note("stopping: taking in the answers that are on their way and writing the tables (a few seconds) …")

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.text import Text

        self._bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True),
            expand=True,
            refresh_per_second=5,
        )
        self._task = self._bar.add_task("", total=self._items, facts="", pace="")
        print_above = self._bar.console.print
        self._drawing.enter_context(told_above(lambda text: print_above(Text.from_ansi(text), soft_wrap=True)))
        self._bar.start()

    def _close(self) -> None:
        self._drawing.close()
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError):
                bar.stop()


@contextmanager
def counting(things: str, *, quiet: bool = False) -> Generator[Callable[[int], None]]:
    """`tick(count)` says now and then how far something has come whose end is not known; nothing when it is quick."""
    due = time.monotonic() + _FIRST_COUNT_S

    def tick(count: int) -> None:
        nonlocal due
        if not quiet and time.monotonic() >= due:
            due = time.monotonic() + _LINE_EVERY_S
            note(f"{count:,} {things} …")

    yield tick


class Pace:
    """How fast items get done, over the latest part of the run."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, done: int) -> None:
        """Note how many were done at a moment (monotonic seconds)."""
        if not self._seen or now - self._seen[-1][0] >= 1 or not done:
            self._seen.append((now, done))
        while len(self._seen) > 1 and now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """Items a second; None while there is nothing to go by."""
        if len(self._seen) < 2:  # noqa: PLR2004 - two points make a line
            return None
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start) if after > before and end > start else None

    def shown(self, left: int) -> str:
        """The rate, and the time that what is left would take at it."""
        rate = self.per_second
        if rate is None:
            return "-"
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"
        return f"{speed} · {clock(max(left, 0) / rate)} left"


def facts(tally: "Tally") -> str:
    """Money, and what is not as it should be."""
    parts = [f"{dollars(tally.cost_micros)} spent"]
    counts = {"failed": tally.failed, "unknown": tally.unknown + tally.overdue, "deferred": tally.deferred}
    parts += [f"{count:,} {name}" for name, count in counts.items() if count]
    return " · ".join(parts)
