"""How the work stands at this moment: items, money against its caps, and who is at work; for `status` and its kind.

Only reading, and only the ledger. What the money bought is `reporting`'s.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from nanobanana_pipeline.generation.publishing import STATUS_OF
from nanobanana_pipeline.generation.unknowns import HELD_STATES
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.leases import identity_of
from nanobanana_pipeline.ledger.ledger import Ledger, Stamp
from nanobanana_pipeline.ledger.states import Holding
from nanobanana_pipeline.ledger.work import ShardWork, open_attempts
from nanobanana_pipeline.settings import Settings


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


@dataclass(frozen=True, slots=True)
class Standing:
    """All of it."""

    stamp: Stamp | None
    catalogues: list[CatalogueStanding]
    caps: list[CapStanding]
    workers: list[WorkerStanding]
    at_risk_micros: int
    undecided_micros: int
    """What of it is at risk for attempts that a person may still decide about; the others were given up."""

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
    for work in ledger.shard_work():
        catalogues.setdefault(work.catalogue, CatalogueStanding(work.catalogue)).add(work)
    counters = ledger.counters()
    with ledger.database.read() as connection:
        now = ledger.database.now(connection)
        undecided = sum(attempt.holding.at_risk for attempt in open_attempts(connection, states=HELD_STATES))
        rows: list[Any] = list(connection.execute(sa.select(schema.leases).order_by(schema.leases.c.acquired_at)))
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
            )
            for row in rows
        ],
        # Every attempt counts to one day, so the days together are all there is.
        at_risk_micros=sum(holding.at_risk for holding in days),
        undecided_micros=undecided,
    )


def _caps(counters: dict[str, Holding], settings: Settings, catalogues: list[str], today: str) -> list[CapStanding]:
    wanted = {f"day:{today}": settings.budget_usd}
    if settings.budget_catalogue_usd is not None:
        wanted |= {f"catalogue:{name}": settings.budget_catalogue_usd for name in catalogues}
    return [CapStanding(scope, _micros(cap), counters.get(scope, Holding())) for scope, cap in wanted.items()]


def _micros(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd.scaleb(6))
