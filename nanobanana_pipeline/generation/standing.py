"""How the work stands at this moment: items, money against its caps, and who is at work; for `status` and its kind.

Only reading, and only the ledger. What the money bought is `reporting`'s.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.generation.publishing import STATUS_OF
from nanobanana_pipeline.generation.unknowns import HELD_STATES
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.leases import identity_of
from nanobanana_pipeline.ledger.ledger import Ledger, Stamp
from nanobanana_pipeline.ledger.states import IN_FLIGHT_STATES, Holding
from nanobanana_pipeline.ledger.work import ShardWork, open_attempts
from nanobanana_pipeline.settings import Settings

_RATE_WINDOW_MS: Final = 120_000


@dataclass(slots=True)
class CatalogueStanding:
    """A catalogue's shards, prompts and items by status (the words of the table `results`)."""

    name: str
    shards: int = 0
    shards_with_work: int = 0
    prompts: int = 0
    items: Counter[str] = field(default_factory=Counter)

    def add(self, work: ShardWork) -> None:
        """Count a shard in."""
        self.shards += 1
        self.shards_with_work += work.left > 0
        self.prompts += work.prompts
        for state, count in work.states.items():
            self.items[STATUS_OF[state]] += count


@dataclass(frozen=True, slots=True)
class CapStanding:
    """What is held against one cap, in micro-dollars; `cap` None: there is none."""

    scope: str
    cap: int | None
    held: Holding


@dataclass(frozen=True, slots=True)
class WorkerStanding:
    """A worker that holds a lease: on which shard, from which host, since and until when (ms, database's clock).

    `dead` is only said of a process known to be gone; the next run takes its work over.
    """

    shard: str
    run_id: str
    host: str
    pid: int
    acquired_at: int
    expires_at: int
    dead: bool
    progress: "ShardProgress"


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Where a worker is with its shard: items, and what it has spent so far (micro-dollars).

    `a_minute` is the rate of the last minutes; `left_s` what the rest would take at that rate, None while it is 0.
    """

    items: int
    done: int
    in_flight: int
    a_minute: float
    spent_micros: int

    @property
    def left_s(self) -> float | None:
        """Seconds to go."""
        return 60 * (self.items - self.done) / self.a_minute if self.a_minute else None


@dataclass(frozen=True, slots=True)
class Standing:
    """All of it."""

    stamp: Stamp | None
    catalogues: list[CatalogueStanding]
    caps: list[CapStanding]
    workers: list[WorkerStanding]
    held: Holding
    """What was spent, is reserved and is at risk, over all days."""
    undecided_micros: int
    """What is at risk for attempts that a person may still decide about; the others were given up."""

    @property
    def items(self) -> dict[str, int]:
        """Items by status over all catalogues, each status named."""
        total: Counter[str] = Counter()
        for catalogue in self.catalogues:
            total.update(catalogue.items)
        return {status: total[status] for status in dict.fromkeys(STATUS_OF.values())}


def standing(ledger: Ledger, settings: Settings) -> Standing:
    """How the work stands now."""
    catalogues: dict[str, CatalogueStanding] = {}
    shards = {work.shard: work for work in ledger.shard_work()}
    for work in shards.values():
        catalogues.setdefault(work.catalogue, CatalogueStanding(work.catalogue)).add(work)
    counters = ledger.counters()
    with ledger.database.read() as connection:
        now = ledger.database.now(connection)
        undecided = sum(attempt.holding.at_risk for attempt in open_attempts(connection, states=HELD_STATES))
        rows: list[Any] = list(connection.execute(sa.select(schema.leases).order_by(schema.leases.c.acquired_at)))
        progress = {row.owner: _progress(connection, row, shards.get(row.shard), now) for row in rows}
    # Every attempt counts to one day, so the days together are all there is.
    days = [holding for scope, holding in counters.items() if scope.startswith("day:")]
    return Standing(
        stamp=ledger.stamp,
        catalogues=list(catalogues.values()),
        caps=_caps(counters, settings, list(catalogues), datetime.fromtimestamp(now / 1000, UTC).date().isoformat()),
        workers=[
            WorkerStanding(
                row.shard,
                row.run_id,
                row.host,
                row.pid,
                row.acquired_at,
                row.expires_at,
                dead=identity_of(row).known_dead(),
                progress=progress[row.owner],
            )
            for row in rows
        ],
        held=Holding(*map(sum, zip(*days, strict=True))),
        undecided_micros=undecided,
    )


def _progress(connection: Connection, lease: Any, work: ShardWork | None, now: int) -> ShardProgress:
    attempts = schema.attempts
    ended = sa.func.coalesce(attempts.c.stored_at, attempts.c.closed_at)
    since = max(lease.acquired_at, now - _RATE_WINDOW_MS)
    figures = sa.select(
        sa.func.count().filter(attempts.c.state.in_([state.value for state in IN_FLIGHT_STATES])),
        sa.func.count().filter(ended >= since),
        sa.func.coalesce(sa.func.sum(attempts.c.cost_micros).filter(attempts.c.run_id == lease.run_id), 0),
    ).where(attempts.c.shard == lease.shard)
    in_flight, ended_lately, spent = connection.execute(figures).one()
    items = work.items if work else 0
    return ShardProgress(
        items=items,
        done=items - (work.left if work else 0),
        in_flight=in_flight,
        a_minute=ended_lately * 60_000 / max(1, now - since),
        spent_micros=int(spent),
    )


def _caps(counters: dict[str, Holding], settings: Settings, catalogues: list[str], today: str) -> list[CapStanding]:
    wanted = {f"day:{today}": settings.budget_usd}
    if settings.budget_catalogue_usd is not None:
        wanted |= {f"catalogue:{name}": settings.budget_catalogue_usd for name in catalogues}
    return [CapStanding(scope, _micros(cap), counters.get(scope, Holding())) for scope, cap in wanted.items()]


def _micros(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd.scaleb(6))
