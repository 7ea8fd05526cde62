"""What is said while the ledger does not answer: a line when the wait begins, and one when it is over.

Many threads wait at once, each with a database of its own; people hear of the first that waits and of the last. Who
listens is told by a thread of its own: a terminal that is held, or a log that is out of reach too, must delay nobody.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Final

from typing_extensions import override

from nanobanana_pipeline.errors import UserError

_log: Final = logging.getLogger("nanobanana.ledger")
_log.setLevel(logging.INFO)
_lock: Final = threading.Lock()


@dataclass(slots=True)
class _Outage:
    began: float = field(default_factory=time.monotonic)
    waiting: int = 0


_outages: Final[dict[str, _Outage]] = {}


@contextmanager
def waiting(place: str, why: str) -> Generator[None]:
    """The body waits for the ledger at `place`; left by a `UserError`, or told to end, it has waited in vain."""
    with _lock:
        first = place not in _outages
        outage = _outages.setdefault(place, _Outage())
        outage.waiting += 1
    if first:
        _log.warning("waiting for the ledger %s: %s", place, why)
    came_back = True
    try:
        yield
    except BaseException as error:
        # What else goes wrong is the ledger's answer.
        came_back = isinstance(error, Exception) and not isinstance(error, UserError)
        raise
    finally:
        with _lock:
            outage.waiting -= 1
            last = not outage.waiting
            if last:
                del _outages[place]
        if last and came_back:
            _log.info("the ledger is back after %.0f s, and the work goes on", time.monotonic() - outage.began)


class _Teller(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    @override
    def emit(self, record: logging.LogRecord) -> None:
        # Whatever becomes of the line, the work goes on.
        with suppress(Exception):
            self._tell(record.getMessage())


@contextmanager
def told(tell: Callable[[str], None]) -> Generator[None]:
    """Have `tell` called with each line, from another thread."""
    lines: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler, listener = QueueHandler(lines), QueueListener(lines, _Teller(tell))
    listener.start()
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        listener.stop()
