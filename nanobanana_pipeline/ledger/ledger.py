"""The ledger as the rest of the project sees it: one object over one database.

What it can be asked is here; how an attempt changes is in `postings`, how a catalogue is entered in `registration`,
and what is left to do in `work`.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.catalogue.validation import CataloguePrompt
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import registration, schema, work
from nanobanana_pipeline.ledger.database import Database
from nanobanana_pipeline.ledger.entries import Candidate
from nanobanana_pipeline.ledger.leases import LEASE_S, Lease
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import Holding
from nanobanana_pipeline.ledger.writer import GroupCommit, transact

T = TypeVar("T")

Mode = Literal["simulated", "live"]

_HISTORY = 400
"""Latencies kept per model and resolution."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Whose work a ledger keeps: the simulator's, or that of one live API."""

    mode: Mode
    origin: str


class Ledger:
    """An open ledger. Threads may share it; close it when done (it is a context manager)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(url)
        try:
            self.database.prepare()
        except UserError:
            self.database.dispose()
            raise
        self._writer: GroupCommit | None = None
        # Threads that make the first postings at once are one user of the writer, which is given back once.
        self._opening = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; what was posted is written, by the writer's last user at the latest."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.database.dispose()

    # --- the stamp ---------------------------------------------------------------------------------------------------

    @property
    def stamp(self) -> Stamp | None:
        """Whose work is in here; None while there is none yet."""
        with self.database.read() as connection:
            mode, origin = _meta(connection, "mode"), _meta(connection, "origin")
        return None if mode is None else Stamp("simulated" if mode == "simulated" else "live", origin or "")

    def claim(self, stamp: Stamp) -> None:
        """Say whose work is about to be entered. Raises `UserError` when another's is in here already.

        A simulator may have another port each time; it is the same simulated world.
        """
        with self.database.write() as connection:
            rows = [{"key": "mode", "value": stamp.mode}, {"key": "origin", "value": stamp.origin}]
            connection.execute(self.database.upsert(schema.meta).on_conflict_do_nothing(), rows)
            mode, origin = _meta(connection, "mode"), _meta(connection, "origin")
        if mode == stamp.mode and (mode == "simulated" or origin == stamp.origin):
            return
        raise UserError(
            f"the ledger {self.database.place} holds {mode} work of {origin}, "
            f"and this run would add {stamp.mode} work of {stamp.origin}: set NANOBANANA_OUTPUT to another folder "
            "(and NANOBANANA_LEDGER_URL to another ledger, if it is set)"
        )

    # --- catalogues --------------------------------------------------------------------------------------------------

    def registered_fingerprint(self, catalogue: str) -> str | None:
        """What the catalogue's files looked like when they were last registered in full."""
        with self.database.read() as connection:
            return registration.registered_fingerprint(connection, catalogue)

    def fingerprints(self) -> dict[str, str | None]:
        """The same of every catalogue that was ever registered: `registration.GONE` for one that was removed since."""
        with self.database.read() as connection:
            return registration.fingerprints(connection)

    def register(
        self,
        catalogue: str,
        batches: Iterable[Sequence[CataloguePrompt]],
        *,
        default_resolution: str,
        shard_size: int,
        complete: Callable[[], bool],
    ) -> registration.Registration:
        """Enter a catalogue; see `registration.register`."""
        return registration.register(
            self.database,
            catalogue,
            batches,
            default_resolution=default_resolution,
            shard_size=shard_size,
            complete=complete,
        )

    @contextmanager
    def entering(self, catalogue: str) -> Generator[None]:
        """Be the only one to give the catalogue's items their places, until it is left; waits for another."""
        with registration.one_at_a_time(self.database, catalogue):
            yield

    def seal(self, catalogue: str, fingerprint: str) -> None:
        """Note what a catalogue looked like when all of it was entered and its tables were written."""
        registration.seal(self.database, catalogue, fingerprint)

    def deactivate_missing(self, present: Sequence[str]) -> list[registration.Registration]:
        """Mark the items of every catalogue that is not `present` any more as inactive."""
        return registration.deactivate_missing(self.database, present)

    # --- work --------------------------------------------------------------------------------------------------------

    def shard_work(self, catalogues: Sequence[str] | None = None, *, shard: str | None = None) -> list[work.ShardWork]:
        """Every shard (or those of some catalogues, or one) with its items by state."""
        with self.database.read() as connection:
            return work.shard_work(connection, catalogues, shard=shard)

    def candidates(
        self,
        shard: str,
        *,
        after: Candidate | None = None,
        rerun: work.Rerun | None = None,
        root_run_id: str = "",
        items: Sequence[str] = (),
        undecided: bool = False,
    ) -> list[Candidate]:
        """The next page of items that wait for an attempt; see `work.candidates`."""

        def read() -> list[Candidate]:
            with self.database.read() as connection:
                return work.candidates(
                    connection,
                    shard,
                    after=after,
                    rerun=rerun,
                    root_run_id=root_run_id,
                    items=items,
                    undecided=undecided,
                )

        return self.database.through_loss(read)

    def items_begun(self, shard: str, root_run_id: str) -> int:
        """How many items of the shard a run and its repetitions have sent already; see `work.items_begun`."""

        def read() -> int:
            with self.database.read() as connection:
                return work.items_begun(connection, shard, root_run_id)

        return self.database.through_loss(read)

    def lease(self, shard: str, run_id: str, *, account: str = "", seconds: float = LEASE_S) -> Lease:
        """A lease on a shard, not yet acquired; what is sent under it counts against the limits of `account`."""
        return Lease(self.database, shard, run_id, account=account, seconds=seconds)

    # --- postings ----------------------------------------------------------------------------------------------------

    async def post(self, posting: Callable[[Postings], T]) -> T:
        """Run a posting in the next group commit; see `writer.GroupCommit.post`."""
        with self._opening:
            writer = self._writer = self._writer or GroupCommit.shared(self.url)
        return await writer.post(posting)

    def post_alone(self, posting: Callable[[Postings], T]) -> T:
        """What a posting gives in a transaction of its own, for callers without an event loop; see `writer.transact`.

        A command locks rows in its own order, and a run in the order of its answers: PostgreSQL ends one of two that
        wait for each other.
        """
        return transact(self.database, posting)

    @contextmanager
    def posting(self) -> Generator[Postings]:
        """A transaction that is held open, step by step.

        Nobody makes it again when it met another's; commands use `post_alone`.
        """
        with self.database.write() as connection:
            postings = Postings(self.database, connection)
            yield postings
            postings.finish()

    # --- money and time ----------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, Holding]:
        """Every budget counter, in micro-dollars, by scope (`day:…`, `catalogue:…`, `run:…`)."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(schema.budget))
            return {row.scope: Holding(row.reserved, row.spent, row.at_risk) for row in rows}

    def latencies(self, model: str) -> dict[str, list[float]]:
        """The latest latencies in seconds, oldest first, by resolution."""
        table = schema.latency_history
        with self.database.read() as connection:
            rows = connection.execute(sa.select(table).where(table.c.model == model))
            return {row.resolution: orjson.loads(row.latencies) for row in rows}

    def remember_latencies(self, model: str, resolution: str, latencies: Sequence[float]) -> None:
        """Add latencies (seconds) to the history, which keeps the latest."""
        if latencies:
            self.database.through_loss(lambda: self._remember(model, resolution, latencies))

    def _remember(self, model: str, resolution: str, latencies: Sequence[float]) -> None:
        table = schema.latency_history
        key = (table.c.model == model) & (table.c.resolution == resolution)
        with self.database.write() as connection:
            query = self.database.lock_rows(sa.select(table.c.latencies).where(key))
            before = connection.execute(query).scalar_one_or_none()
            kept = [*(orjson.loads(before) if before else []), *(round(latency, 3) for latency in latencies)]
            insert = self.database.upsert(table).values(
                model=model,
                resolution=resolution,
                latencies=orjson.dumps(kept[-_HISTORY:]).decode(),
                updated_at=self.database.now(connection),
            )
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["model", "resolution"],
                    set_={"latencies": insert.excluded.latencies, "updated_at": insert.excluded.updated_at},
                )
            )


def _meta(connection: Connection, key: str) -> str | None:
    return connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.key == key)).scalar_one_or_none()
