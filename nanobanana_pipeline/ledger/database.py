"""Opening the ledger's database: SQLite by default, PostgreSQL by URL.

What differs between the two lives here and nowhere else: pragmas, how a write transaction begins, whose clock counts,
and which errors mean "try again".
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVarTuple

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import schema

Ts = TypeVarTuple("Ts")

BUSY_TIMEOUT_S = 60
_RETRY_SQLSTATES = {"40001", "40P01"}


class Database:
    """One ledger database. Threads may share it; processes each open their own."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self.dialect = self._url.get_backend_name()
        match self.dialect:
            case "sqlite":
                self.engine = _sqlite_engine(self._url)
            case "postgresql":
                self.engine = sa.create_engine(
                    self._url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=8, max_overflow=16
                )
            case other:
                raise UserError(f"NANOBANANA_LEDGER_URL: {other} is not supported; use sqlite:/// or postgresql://")

    @property
    def place(self) -> str:
        """Where it is, without the password."""
        return self._url.render_as_string(hide_password=True)

    def create_schema(self) -> None:
        """Make what tables are missing; safe for several processes at once. Raises `UserError` when out of reach."""
        try:
            with self.write() as connection:
                if self.dialect == "postgresql":
                    # Two processes that both create a table race on PostgreSQL's catalogue, IF NOT EXISTS or not.
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7202611)")
                schema.metadata.create_all(connection)
        except DBAPIError as error:
            raise UserError(
                f"the ledger at {self.place} can't be opened "
                f"({_first_line(error)}); check NANOBANANA_LEDGER_URL and that the place can be written to"
            ) from None

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A read-only transaction on one consistent snapshot."""
        options = {"isolation_level": "REPEATABLE READ"} if self.dialect == "postgresql" else {}
        with self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection]:
        """A write transaction; on SQLite it holds the only write lock from its first statement on."""
        with self.engine.connect().execution_options(nanobanana_write=True) as connection, connection.begin():
            yield connection

    def now(self, connection: Connection) -> int:
        """Milliseconds since the epoch by the database's clock: hosts' own clocks differ, and leases hang on it."""
        if self.dialect == "postgresql":
            query = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
            return int(connection.exec_driver_sql(query).scalar_one())
        return time.time_ns() // 1_000_000

    def lock_rows(self, query: sa.Select[*Ts]) -> sa.Select[*Ts]:
        """The same query, holding what it reads until the end of the transaction."""
        return query.with_for_update() if self.dialect == "postgresql" else query

    def upsert(self, table: sa.Table) -> Any:
        """The dialect's INSERT that knows ON CONFLICT."""
        if self.dialect == "postgresql":
            from sqlalchemy.dialects.postgresql import insert  # noqa: PLC0415 - one of two dialects is in use
        else:
            from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415
        return insert(table)

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def is_transient(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is run again: a deadlock or a serialisation failure."""
    return getattr(error.orig, "sqlstate", None) in _RETRY_SQLSTATES


def _sqlite_engine(url: sa.URL) -> Engine:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the ledger's folder {Path(url.database).parent} can't be made: {error.strerror}"
            ) from None
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # SQLAlchemy begins transactions itself (below), so that a writer can take the lock at once.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: what a commit acknowledged survives a power cut. NORMAL could lose the row of a paid submit.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA cache_size=-65536")
        cursor.execute("PRAGMA temp_store=FILE")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that turns into a writer can fail with "database is locked" however long the timeout.
        write = connection.get_execution_options().get("nanobanana_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().split("\n", 1)[0]
