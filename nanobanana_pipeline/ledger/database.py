"""Opening the ledger's database: SQLite by default, PostgreSQL by URL.

What differs between the two lives here and nowhere else: pragmas, how a write transaction begins, whose clock counts,
and which errors mean "try again".
"""

import sqlite3
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, Transaction, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import outages, schema
from nanobanana_pipeline.ledger.migrations import upgrade

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BUSY_TIMEOUT_S = 10
"""How long a connection to SQLite waits for a lock before it says so; who wants the write lock asks again then."""
_CACHE_KB: Final = 2 * 1024
"""Of SQLite's pages, for each of the fifteen connections of a run of many shards, which all fill it: with 8 MB a run of
30,000 items took 10 MB more and not less time. The system caches the file besides. SQLite's own default."""
_LARGE_CACHE_KB: Final = 96 * 1024
_CHECKPOINT_PAGES: Final = 1_000
"""Of 4 KB, in SQLite's write-ahead log, before they are written to the database itself; SQLite's own default."""
_LARGE_CHECKPOINT_PAGES: Final = 50_000
_LOG_BYTES: Final = 16 * 1024 * 1024
"""What that log may keep of the disk when it is begun anew, all in it being written."""
_VERSION_KEY = "schema_version"
_RETRY_SQLSTATES = {"40001", "40P01"}
_RETRIES: Final = 8

LOSS_PATIENCE_S = 600.0
"""How long a run waits for a database that went away: longer than a restart or a failover takes."""
_ASK_AGAIN_S: Final = 0.25
# A lost connection, a server that shuts down or starts up, one that has no connection to spare, or no room.
_LOST_SQLSTATES: Final = ("08", "57P", "53300", "53100")
# Another holds the write lock, the disk does not do as it is told, or is full.
_LOST_ON_SQLITE: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL})
_PRIMARY_CODE: Final = 0xFF
"""Of SQLite's error codes, the part that says what kind it is."""
# A machine that is gone says nothing: without these a connection to it would wait for hours.
_NOTICE_LOSS: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class LedgerLostError(UserError):
    """The database went away and did not come back."""


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
                    self._url.set(drivername="postgresql+psycopg"),
                    pool_pre_ping=True,
                    pool_size=8,
                    max_overflow=16,
                    connect_args=_NOTICE_LOSS,
                )
            case other:
                raise UserError(f"NANOBANANA_LEDGER_URL: {other} is not supported; use sqlite:/// or postgresql://")

    @property
    def place(self) -> str:
        """Where it is, without the password."""
        return self._url.render_as_string(hide_password=True)

    def prepare(self) -> None:
        """Make the tables, or bring those of an earlier version up to date; safe for several processes at once.

        Raises `UserError` when it is out of reach, or was written by a later version.
        """
        try:
            self.engine.connect().close()  # at the start nobody waits for a database: its name may be wrong
            with self.read() as connection:
                current = _version(connection) == schema.SCHEMA_VERSION
            # Looking needs no write lock: `status` must answer beside a writer that holds it.
            if not current:
                with self.write() as connection:
                    self._bring_up_to_date(connection)
        except DBAPIError as error:
            raise UserError(
                f"the ledger at {self.place} can't be opened "
                f"({_first_line(error)}); check NANOBANANA_LEDGER_URL and that the place can be written to"
            ) from None

    def _bring_up_to_date(self, connection: Connection) -> None:
        if self.dialect == "postgresql":
            # Two processes that both create a table race on PostgreSQL's catalogue, IF NOT EXISTS or not.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7202611)")
        found, wanted = _version(connection), schema.SCHEMA_VERSION
        if found is not None and found > wanted:
            raise UserError(
                f"the ledger {self.place} has schema version {found}, and this program knows {wanted}: "
                "use the version of nanobanana_pipeline that wrote it, or a later one"
            )
        if found is None:
            schema.metadata.create_all(connection)
        else:
            upgrade(connection, found, wanted)
        row = {"key": _VERSION_KEY, "value": str(wanted)}
        entry = self.upsert(schema.meta).values(row)
        connection.execute(entry.on_conflict_do_update(index_elements=["key"], set_={"value": row["value"]}))

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A read-only transaction on one consistent snapshot."""
        options = {"isolation_level": "REPEATABLE READ"} if self.dialect == "postgresql" else {}
        connection, transaction = self.through_loss(lambda: self._connected(options))
        with connection, transaction:
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection]:
        """A write transaction; on SQLite it holds the only write lock from its first statement on."""
        connection, transaction = self.through_loss(lambda: self._connected({"nanobanana_write": True}))
        with connection, transaction:
            yield connection

    def _connected(self, options: Mapping[str, Any]) -> tuple[Connection, Transaction]:
        connection = self.engine.connect()
        try:
            return connection, connection.execution_options(**options).begin()
        except BaseException:
            connection.close()
            raise

    @contextmanager
    def begun(self, connection: Connection) -> Generator[None]:
        """One more transaction on an open connection, which waits for whoever holds the lock it needs."""
        with self.through_loss(connection.begin):
            yield

    def through_loss(self, work: Callable[[], T]) -> T:
        """What `work` gives, which may be done twice; asked again while the database is out of reach.

        So is one whose disk is full: what a provider has answered is known to this process alone until there is room.
        Raises `LedgerLostError` when it stays away.
        """
        ends, told = time.monotonic() + LOSS_PATIENCE_S, False
        with ExitStack() as wait:
            while True:
                try:
                    return work()
                except DBAPIError as error:
                    if not is_lost(error):
                        raise
                    if time.monotonic() >= ends:
                        raise LedgerLostError(
                            f"the ledger {self.place} has been out of reach for {LOSS_PATIENCE_S:g} seconds "
                            f"({_first_line(error)}); every call is in it that was ever sent: bring it back, and run "
                            "again"
                        ) from None
                    if not told:
                        wait.enter_context(outages.waiting(self.place, _what_to_do(error)))
                        told = True
                time.sleep(_ASK_AGAIN_S)

    def transaction_id(self, connection: Connection) -> str | None:
        """The name of a write transaction, by which `committed` knows it; None on SQLite, which loses no answer."""
        if self.dialect != "postgresql":
            return None
        return connection.exec_driver_sql("SELECT pg_current_xact_id_if_assigned()::text").scalar_one()

    def committed(self, transaction: str | None) -> bool:
        """Whether a transaction whose connection was lost has taken place after all; waits for the database.

        None is one that had no name yet when it was lost: it had changed nothing, or was never asked to commit.
        """
        if self.dialect == "sqlite":
            return False  # what it answers to a commit is so
        while True:
            status = self.through_loss(lambda: self._status(transaction))
            if status != "in progress":
                return status == "committed"
            time.sleep(_ASK_AGAIN_S)  # the server has not noticed yet that nobody is there

    def _status(self, transaction: str | None) -> str | None:
        with self.engine.connect() as connection:
            query = "SELECT pg_xact_status(CAST(CAST(:name AS text) AS xid8))"
            return connection.execute(sa.text(query), {"name": transaction}).scalar_one()

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

    def insert(
        self, connection: Connection, statement: sa.Insert, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> None:
        """Insert many rows of values for these columns, in the table's order, which the driver takes as they are.

        Past SQLAlchemy's care for each value, which costs more than the row itself.
        """
        compiled = statement.compile(dialect=self.engine.dialect, column_keys=list(columns))
        if self.dialect == "sqlite":
            # Its driver takes values by place.
            if list(getattr(compiled, "positiontup", ())) != list(columns):
                raise ValueError(f"{columns} are not in the order of the table {statement.table}")
            connection.exec_driver_sql(str(compiled), rows)
        else:
            connection.exec_driver_sql(str(compiled), [dict(zip(columns, row, strict=True)) for row in rows])

    @contextmanager
    def much_to_write(self, connection: Connection) -> Generator[None]:
        """Room for many transactions that each touch all of an index: with less, SQLite writes a page many times.

        A million new items took 39 to 44 s of CPU with 64 MB and a checkpoint at each commit, and 31 to 32 like this.
        """
        if self.dialect != "sqlite":
            yield
            return
        # Past SQLAlchemy, which would begin a transaction: the end of this must wait for nobody's lock.
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA cache_size=-{_LARGE_CACHE_KB}")
        cursor.execute(f"PRAGMA wal_autocheckpoint={_LARGE_CHECKPOINT_PAGES}")
        try:
            yield
        finally:
            cursor.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            # As far as it goes without waiting: else the next to commit, perhaps a worker, would have all of it to do.
            # One that commits before this end does have what there is by then.
            with suppress(sqlite3.Error):  # all that was entered is durable; a later checkpoint meets the same disk
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            cursor.execute(f"PRAGMA cache_size=-{_CACHE_KB}")
            cursor.execute("PRAGMA shrink_memory")
            cursor.close()

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def is_lost(error: DBAPIError) -> bool:
    """Whether the database is gone, can't be had or has no room, and the statement may be blameless."""
    if isinstance(error.orig, sqlite3.Error):
        # Python's own complaints have no code.
        return getattr(error.orig, "sqlite_errorcode", 0) & _PRIMARY_CODE in _LOST_ON_SQLITE
    sqlstate = getattr(error.orig, "sqlstate", "not PostgreSQL")
    return error.connection_invalidated or (
        isinstance(error, OperationalError) and (sqlstate is None or sqlstate.startswith(_LOST_SQLSTATES))
    )


def is_transient(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is run again: a deadlock or a serialisation failure."""
    return getattr(error.orig, "sqlstate", None) in _RETRY_SQLSTATES


def through_deadlocks(work: Callable[[], T]) -> T:
    """What `work` gives, which is one whole transaction; made again when it stood in another's way and was ended."""
    for tries in range(_RETRIES):
        try:
            return work()
        except DBAPIError as error:
            if not is_transient(error):
                raise
        time.sleep(0.01 * 2**tries)
    return work()


def _version(connection: Connection) -> int | None:
    """The schema version of a ledger; None while there is none."""
    if not sa.inspect(connection).has_table(schema.meta.name):
        return None
    query = sa.select(schema.meta.c.value).where(schema.meta.c.key == _VERSION_KEY)
    # Version 1 made its tables in one transaction and said so in the next, and may have died in between.
    return int(connection.execute(query).scalar_one_or_none() or 1)


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
        cursor.execute(f"PRAGMA cache_size=-{_CACHE_KB}")
        cursor.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
        cursor.execute("PRAGMA temp_store=FILE")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that turns into a writer can fail with "database is locked" however long the timeout.
        write = connection.get_execution_options().get("nanobanana_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _what_to_do(error: DBAPIError) -> str:
    """Of a database that is lost: what is the matter, and what a person can do about it."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate == "53100" or (code is not None and code & _PRIMARY_CODE == sqlite3.SQLITE_FULL):
        advice = "its disk is full; make room"
    elif sqlstate == "53300":
        advice = "it has no connection to spare; end some that others hold"
    elif code is None:
        advice = f"it is out of reach ({_first_line(error)}); bring it back"
    elif code & _PRIMARY_CODE == sqlite3.SQLITE_BUSY:
        advice = "another program holds it; let that finish, or end it"
    else:
        advice = f"its disk does not do as it is told ({_first_line(error)}); look after it"
    return f"{advice}. Nothing is sent and nothing is lost meanwhile, for {LOSS_PATIENCE_S / 60:g} minutes"


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().split("\n", 1)[0]
