"""A graceful stop: one switch that signals, Dagster's terminate and other threads can throw, and the engine obeys."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class RunInterruptedError(BaseException):
    """The run was told to stop, and has: nothing is lost, and the next run goes on from there.

    Not an `Exception`, like KeyboardInterrupt, so that nobody who handles failures takes it for one.
    """


class StopSwitch:
    """Thrown once; whoever registered a callback is called, at once if it was thrown already."""

    def __init__(self) -> None:
        # A signal may come to the very thread that holds it.
        self._lock = threading.RLock()
        self._thrown = False
        self._callbacks: list[Callable[[], None]] = []
        self.signal_number: int | None = None

    @property
    def thrown(self) -> bool:
        """Whether a stop was asked for."""
        return self._thrown

    def throw(self) -> None:
        """Ask everyone to stop."""
        with self._lock:
            self._thrown = True
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            callback()

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Generator[None]:
        """Call `callback` on a stop, for as long as the context lasts."""
        with self._lock:
            self._callbacks.append(callback)
            thrown = self._thrown
        if thrown:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)

    @contextmanager
    def on_signals(self) -> Generator[None]:
        """Throw the switch on SIGINT and SIGTERM instead of what they did before; only the main thread can.

        Dagster turns both into an exception wherever the main thread happens to be. In the middle of an event loop that
        cancels submits in the air, whose answers would be lost; so while the engine runs the signals come here.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _frame: FrameType | None) -> None:
            self.signal_number = number
            self.throw()

        before: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
