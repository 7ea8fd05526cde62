"""Dagster's event log in SQLite files, kept open while a command works many shards off.

Dagster has a file for each run, and opens and closes it for each of a run's forty events, while all other runs wait.
What is written, and when it is durable, is as Dagster has it.
"""

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from dagster._core.storage.event_log import EventLogStorage, SqliteEventLogStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from sqlalchemy.pool import StaticPool

_OPEN: Final = 16
"""Files that stay open: those of the runs at work, and the index over all runs."""


@contextmanager
def kept_open(storage: EventLogStorage) -> Generator[None]:
    """Keep the log's files open inside; of another storage than Dagster's default nothing is changed."""
    if type(storage) is not SqliteEventLogStorage:
        yield
        return
    files = _Files(storage)
    storage._connect = files.connect  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        del storage._connect  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        files.close()


class _Files:
    """The open files of one log, the least lately used first. Dagster's own lock guards them."""

    def __init__(self, storage: SqliteEventLogStorage) -> None:
        self._storage = storage
        self._engines: OrderedDict[str, sa.Engine] = OrderedDict()
        self._empty: bytes | None = None

    @contextmanager
    def connect(self, shard: str) -> Generator[sa.Connection]:
        """A transaction on the file of a run (Dagster's word is shard), or on the index; as Dagster's `_connect`."""
        with self._storage._db_lock, self._engine(shard).begin() as connection:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            yield connection

    def close(self) -> None:
        """Close every file."""
        for engine in self._engines.values():
            engine.dispose()
        self._engines.clear()

    def _engine(self, name: str) -> sa.Engine:
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines[name] = self._opened(name)
        self._engines.move_to_end(name)
        if len(self._engines) > _OPEN:
            _, oldest = self._engines.popitem(last=False)
            oldest.dispose()
        return engine

    def _opened(self, name: str) -> sa.Engine:
        storage = self._storage
        known = storage._initialized_dbs  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        path = Path(storage.path_for_shard(name))
        new = not path.exists()
        if new and self._empty is not None:
            # To make one takes a twentieth of a second, for the history of Dagster's migrations is read.
            aside = path.with_suffix(".new")
            aside.write_bytes(self._empty)
            aside.rename(path)
            known.add(name)
        engine = sa.create_engine(
            storage.conn_string_for_shard(name),
            poolclass=StaticPool,
            connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )
        if name not in known:
            storage._initdb(engine)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            known.add(name)
        if new and self._empty is None:
            with engine.connect() as connection:
                busy, *_ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
            # Somebody looks at this run already: then a part of the file is still beside it, and the next will do.
            if not busy:
                self._empty = path.read_bytes()
        return engine
