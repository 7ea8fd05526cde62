"""A run's pulse: who works on it, kept in Dagster's own storage and beating for as long as its worker lives.

Celery can't tell: to its results' backend a task whose worker was killed stays "started" for good, and a backend that
lost its memory knows no task at all. The pulse also decides who may work on a run: it is claimed, by comparing and
swapping, from nobody or from a worker that is dead. So a message to the workers may be lost, or come twice.

It says nothing about money. That nobody sends what another has sent is the ledger's, by its leases.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

import dagster as dg
from dagster import DagsterRunStatus
from dagster._core.storage.runs.schema import KeyValueStoreTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger.leases import ProcessIdentity

BEAT_S: Final = 5.0
SILENCE_S: Final = 60
"""A worker that was not heard for so long is taken for dead: a machine may be slow, and another may wait a minute."""

_KEY: Final = "nanobanana_pulse:"
_LONGEST_STEP_S: Final = 15.0
_MOST_WATCHED: Final = 1000
_FORGOTTEN_AFTER_S: Final = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pulse:
    """The last beat of a run; `text` is what one compares and swaps."""

    worker: ProcessIdentity
    beat: int
    at: float
    """By the worker's own clock, in seconds since the epoch."""
    left: bool = False
    """Its worker has stopped in good order and leaves the rest to another."""

    @property
    def text(self) -> str:
        """As it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, instance: dg.DagsterInstance, run_id: str) -> Self | None:
        """The run's last beat; None before any worker took it, and after its end."""
        text = instance.run_storage.get_cursor_values({_KEY + run_id}).get(_KEY + run_id)
        if not text:
            return None
        values: dict[str, Any] = json.loads(text)
        return cls(ProcessIdentity(**values.pop("worker")), **values)

    @property
    def surely_dead(self) -> bool:
        """Whether no more beats will come: it said so, or its process is known to be gone (from its own machine)."""
        return self.left or self.worker.known_dead()


def claim(instance: dg.DagsterInstance, run_id: str, before: str) -> Pulse | None:
    """Take a run over whose last beat is `before` (empty: nobody's); None when that is not so any more."""
    pulse = Pulse(ProcessIdentity.current(), 0, time.time())
    return pulse if _swap(instance, run_id, before, pulse.text) else None


def forget(instance: dg.DagsterInstance, run_id: str) -> None:
    """A run is over: it has no pulse."""
    with _connect(instance) as connection:
        connection.execute(KeyValueStoreTable.delete().where(KeyValueStoreTable.c.key == _KEY + run_id))


def _swap(instance: dg.DagsterInstance, run_id: str, before: str, after: str) -> bool:
    table = KeyValueStoreTable
    try:
        with _connect(instance) as connection:
            if not before:
                connection.execute(table.insert().values(key=_KEY + run_id, value=after))
                return True
            mine = (table.c.key == _KEY + run_id) & (table.c.value == before)
            return connection.execute(table.update().where(mine).values(value=after)).rowcount == 1
    except IntegrityError:
        return False


def _connect(instance: dg.DagsterInstance) -> AbstractContextManager[Connection]:
    # Dagster's own interface to these values sets them whatever they were before, and so decides nothing.
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        raise UserError(f"workers need Dagster's state in PostgreSQL or SQLite, not in {type(storage).__name__}")
    return storage.connect()


@contextmanager
def beating(instance: dg.DagsterInstance, run_id: str, pulse: Pulse) -> Generator[None]:
    """Keep a claimed run's pulse, and pass on that a person stops it: as SIGTERM to this process's main thread.

    The run's status in Dagster's storage says so, rather than a message to the worker: those are lost with the broker.
    Ends with the pulse forgotten, or with `left` when the run is not over.
    """
    heart = _Heart(instance, run_id, pulse)
    heart.start()
    try:
        yield
    finally:
        heart.stop()


class _Heart(threading.Thread):
    def __init__(self, instance: dg.DagsterInstance, run_id: str, pulse: Pulse) -> None:
        super().__init__(name=f"pulse of {run_id[:8]}", daemon=True)
        self._instance = instance
        self._run_id = run_id
        self._pulse = pulse
        self._over = threading.Event()
        self._told = False
        self._seen_over = False

    def run(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                if not self._beat():
                    return
            except Exception as error:  # noqa: BLE001 - Dagster's storage is out of reach: the work goes on without it
                _log.warning("run %s: no pulse (%s)", self._run_id, error)

    def _beat(self) -> bool:
        following = Pulse(self._pulse.worker, self._pulse.beat + 1, time.time())
        if _swap(self._instance, self._run_id, self._pulse.text, following.text):
            self._pulse = following
        else:
            last = Pulse.read(self._instance, self._run_id)
            if last is None or last.worker != self._pulse.worker:
                _log.warning("run %s was taken over by another worker: this one stops", self._run_id)
                self._interrupt()
                return False
            self._pulse = last  # a beat whose acknowledgement was lost
        run = self._instance.get_run_by_id(self._run_id)
        over = run is not None and run.is_finished
        # Over at two beats: ended by somebody else. At one it may be this worker's own end, a moment ago.
        if run is not None and (run.status is DagsterRunStatus.CANCELING or (over and self._seen_over)):
            self._interrupt()
        self._seen_over = over
        return True

    def _interrupt(self) -> None:
        if not self._told and not self._over.is_set():
            self._told = True
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        """End the pulse as the run's state wants it."""
        self._over.set()
        self.join()
        run = self._instance.get_run_by_id(self._run_id)
        if run is None or run.is_finished:
            forget(self._instance, self._run_id)
        else:
            left = replace(self._pulse, left=True)
            _swap(self._instance, self._run_id, self._pulse.text, left.text)


@dataclass(slots=True)
class _Heard:
    text: str
    at: float
    silent_s: float = 0.0


@dataclass(slots=True)
class Watch:
    """How long each run's pulse has not changed, by this process's clock alone: hosts' clocks differ.

    A pause of the watcher itself (the database was away, and nobody's pulse came through) counts for a moment only.
    """

    _heard: dict[str, _Heard] = field(default_factory=dict)

    def silence_s(self, run_id: str, text: str, *, now: float | None = None) -> float:
        """Seconds for which the pulse was seen to be `text`."""
        now = time.monotonic() if now is None else now
        heard = self._heard.get(run_id)
        if heard is None or heard.text != text:
            if len(self._heard) >= _MOST_WATCHED:
                self._heard = {run: heard for run, heard in self._heard.items() if now - heard.at < _FORGOTTEN_AFTER_S}
            self._heard[run_id] = _Heard(text, now)
            return 0.0
        heard.silent_s += min(now - heard.at, _LONGEST_STEP_S)
        heard.at = now
        return heard.silent_s
