"""Group commit: many small postings, one durable transaction; and the transaction that a posting is made in.

A commit costs an fsync. Made one by one, SQLite with synchronous=FULL takes some 800 postings a second; gathered while
the previous commit was on its way to the disk, it takes over ten thousand, and none is acknowledged before it is
durable.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from sqlalchemy.exc import DBAPIError

from nanobanana_pipeline.ledger.database import Database, LedgerLostError, is_lost, is_transient
from nanobanana_pipeline.ledger.postings import DoubtError, Postings

T = TypeVar("T")
Posting = Callable[[Postings], Any]

MAX_BATCH = 256
_RETRIES = 8


@dataclass(slots=True)
class _Waiting:
    posting: Posting
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = None


class GroupCommit:
    """One writer thread for a ledger. Event loops of several threads may post to it; `shared` gives it to them."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _open: ClassVar[dict[str, "GroupCommit"]] = {}

    def __init__(self, url: str) -> None:
        self._url = url
        self.users = 0
        self._database = Database(url)
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="ledger-writer", daemon=True)
        self._thread.start()

    async def post(self, posting: Callable[[Postings], T]) -> T:
        """Run `posting` in the next transaction; returns its result once that is durable, or raises what it raised.

        A posting may be run more than once (after a deadlock, or when a neighbour in its batch failed), so it must not
        have effects outside the transaction.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Waiting(posting, future, loop))
        return await future

    @classmethod
    def shared(cls, url: str) -> "GroupCommit":
        """The one writer that a ledger has in this process; each user closes it once.

        The shards that a process works on at once commit together: writers of their own would wait for each other's
        lock and each pay for a flush.
        """
        with cls._lock:
            if url not in cls._open:
                cls._open[url] = cls(url)
            writer = cls._open[url]
            writer.users += 1
            return writer

    def close(self) -> None:
        """The last user's call waits until all that was posted is written, and ends the thread."""
        with self._lock:
            self.users -= 1
            if self.users:
                return
            del self._open[self._url]
        self._queue.put(None)
        self._thread.join()
        self._database.dispose()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            ends = False
            while len(batch) < MAX_BATCH:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    ends = True
                    break
                batch.append(following)
            self._commit(batch)
            if ends:
                return

    def _commit(self, batch: list[_Waiting]) -> None:
        try:
            self._transact(batch)
        except LedgerLostError as error:
            for waiting in batch:
                waiting.error = error
        except Exception as error:  # noqa: BLE001 - whatever it is, it is handed to the one who waits
            if len(batch) == 1:
                batch[0].error = error
            else:
                # One bad posting must not take its neighbours with it.
                for waiting in batch:
                    self._commit([waiting])
                return
        _answer(batch)

    def _transact(self, batch: list[_Waiting]) -> None:
        def everything(postings: Postings) -> None:
            for waiting in batch:
                waiting.result = waiting.posting(postings)

        transact(self._database, everything, gather=True)


def transact(database: Database, posting: Callable[[Postings], T], *, gather: bool = False) -> T:
    """What a posting gives in a transaction of its own, once that is durable; waits for a database that went away.

    It may be run more than once, so it must not have effects outside the transaction; see `Postings` for `gather`.
    """
    return database.through_loss(lambda: _undisturbed(database, posting, gather=gather))


def _undisturbed(database: Database, posting: Callable[[Postings], T], *, gather: bool) -> T:
    """One transaction, made again where it met another's. Raises what was lost, with nothing changed."""
    deadlocks = 0
    while True:
        transaction = None
        postings: Postings | None = None
        results: list[T] = []
        try:
            with database.write() as connection:
                postings = Postings(database, connection, gather=gather)
                results.append(posting(postings))
                postings.finish()
                transaction = database.transaction_id(connection)
        except BaseException as error:
            lost = isinstance(error, DBAPIError) and is_lost(error)
            if lost and results and database.committed(transaction):
                # Its answer was lost, and it has taken place. Made again, its money would count twice.
                return results[0]
            if postings is not None:
                postings.forget()
            if isinstance(error, DoubtError):
                gather = False
            elif isinstance(error, DBAPIError) and is_transient(error) and deadlocks < _RETRIES:
                time.sleep(0.01 * 2**deadlocks)
                deadlocks += 1
            else:
                raise
        else:
            return results[0]


def _answer(batch: list[_Waiting]) -> None:
    """Wake the waiters, with one call into each event loop and not one per posting."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Waiting]] = {}
    for waiting in batch:
        by_loop.setdefault(waiting.loop, []).append(waiting)
    for loop, answered in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, answered)
        except RuntimeError:
            # The loop ended without waiting (its run was cancelled); what it posted is durable all the same.
            continue


def _resolve(answered: list[_Waiting]) -> None:
    for waiting in answered:
        if waiting.future.done():
            continue
        if waiting.error is not None:
            waiting.future.set_exception(waiting.error)
        else:
            waiting.future.set_result(waiting.result)
