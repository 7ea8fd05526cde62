"""What a run would do and cost, before anything is spent: a dry run of registration and of the choice of work.

Nothing is registered and no table is written. How the work is gathered is in `draft`; what it costs is `forecast`'s to
say; whether it may be spent, `approval`'s.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.generation.intake import chosen_sources, is_registered
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import budget, schema
from nanobanana_pipeline.ledger.states import Holding
from nanobanana_pipeline.reporting.costs import shown
from nanobanana_pipeline.reporting.draft import CataloguePlan, Draft, Standing, Wanted
from nanobanana_pipeline.reporting.forecast import Forecast, Pace, Range, forecast
from nanobanana_pipeline.reporting.history import history

_items = schema.items


@dataclass(slots=True)
class Plan:
    """What a run would do. Money is in micro-dollars. The same items and requests have the same `hash`.

    `to_make` can be less than the catalogues' items to make, when the run is to make only so many. `reserve_micros` is
    the sum of all reservations, more than will be spent; `room_micros` is what today's cap has left.
    """

    hash: str
    created_at: int
    model: str
    simulated: bool
    catalogues: list[CataloguePlan]
    to_make: int
    by_resolution: dict[str, int]
    forecast: Forecast
    reserve_micros: int
    room_micros: int
    whole: bool
    """Of all that is waiting in its catalogues."""

    @property
    def cost(self) -> Range:
        """What it would cost."""
        return self.forecast.cost

    @property
    def duration_s(self) -> Range:
        """How long it would take."""
        return self.forecast.duration_s

    @property
    def counts(self) -> dict[str, int]:
        """Over all catalogues: items by standing, removed items, refused rows, duplicates elsewhere."""
        standings: Counter[Standing] = Counter()
        for catalogue in self.catalogues:
            standings.update(catalogue.items)
        return {
            **{standing.value: standings[standing] for standing in Standing},
            "removed": sum(catalogue.removed for catalogue in self.catalogues),
            "refused": sum(catalogue.refused.total() for catalogue in self.catalogues),
            "duplicates": sum(catalogue.duplicates for catalogue in self.catalogues),
        }

    @property
    def fits(self) -> bool:
        """Whether today's cap has room for what it would cost in nine of ten cases."""
        return self.cost.p90 <= self.room_micros

    def as_dict(self) -> dict[str, Any]:
        """For JSON: money as strings of dollars with six places."""
        return {
            "hash": self.hash,
            "created_at": datetime.fromtimestamp(self.created_at / 1000, UTC).isoformat(timespec="seconds"),
            "model": self.model,
            "simulated": self.simulated,
            "to_make": self.to_make,
            "by_resolution": self.by_resolution,
            "counts": self.counts,
            "cost_usd": _named(self.cost, lambda micros: budget.usd(round(micros))),
            "duration_s": _named(self.duration_s, lambda seconds: round(seconds, 1)),
            "attempts": _named(self.forecast.attempts, round),
            "based_on": self.forecast.experiences,
            "reserve_usd": budget.usd(self.reserve_micros),
            "room_usd": budget.usd(self.room_micros),
            "catalogues": [
                {
                    "name": catalogue.name,
                    "items": {standing.value: count for standing, count in catalogue.items.items()},
                    "removed": catalogue.removed,
                    "refused": dict(catalogue.refused),
                    "duplicates": catalogue.duplicates,
                }
                for catalogue in self.catalogues
            ],
        }

    @property
    def based_on(self) -> str:
        """What the forecast goes by, in words."""
        seen = self.forecast.experiences
        return f"{seen:,} finished items" if seen else "the model spec alone: no item is finished yet"

    @property
    def markdown(self) -> str:
        """The plan in a few lines, for Dagster's metadata."""
        cost, seconds = self.cost, self.duration_s
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items() if count)
        lines = [
            f"**{self.to_make:,} images to make** ({counts or 'nothing in the catalogues'})",
            "",
            "| | P10 | P50 | P90 |",
            "| --- | ---: | ---: | ---: |",
            f"| cost | {' | '.join(shown(round(micros)) for micros in cost)} |",
            f"| duration | {' | '.join(span(value) for value in seconds)} |",
            "",
            f"Based on {self.based_on}. Plan `{self.hash}`.",
        ]
        if not self.fits:
            lines.insert(1, f"\nToday's cap has room for {shown(self.room_micros)}.")
        if self.simulated:
            lines.insert(0, "**Simulated: no money is spent.**\n")
        return "\n".join(lines)


def plan(
    workspace: Workspace,
    names: Sequence[str] | None = None,
    wanted: Wanted | None = None,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Plan:
    """What a run over the catalogues (all, or those named) would do and cost.

    Writes nothing. A catalogue that the ledger holds as it is now is not read again. `on_progress` is told how many
    items were looked at. Raises `UserError` for an unknown catalogue, and when no price is known for today.
    """
    sources = chosen_sources(workspace.settings, names)
    catalogues: list[CataloguePlan] = []
    with workspace.ledger.database.read() as connection:
        now = workspace.ledger.database.now(connection)
        draft = Draft(workspace, _day(now), wanted or Wanted(), on_progress=on_progress)
        for source in sources:
            if not is_registered(workspace, source):
                catalogues.append(draft.read(connection, source))
                continue
            found = draft.recall(connection, source.name)
            rejected = workspace.tables.read("rejected_prompts", ["rule"], {"catalogue": source.name})
            found.refused.update(rejected["rule"].to_pylist())
            catalogues.append(found)
        if names is None:
            catalogues += _gone(connection, {source.name for source in sources})
    return _plan(workspace, draft, catalogues, now, whole=wanted in (None, Wanted()))


def plan_registered(workspace: Workspace, catalogue: str, wanted: Wanted, *, shard: str | None = None) -> Plan:
    """What a run over a catalogue, or one shard of it, would do and cost, whatever its files are now.

    Raises `UserError` when no price is known for today.
    """
    with workspace.ledger.database.read() as connection:
        now = workspace.ledger.database.now(connection)
        draft = Draft(workspace, _day(now), wanted)
        found = draft.recall(connection, catalogue, shard=shard)
    return _plan(workspace, draft, [found], now, whole=shard is None and wanted == Wanted())


def _plan(workspace: Workspace, draft: Draft, catalogues: list[CataloguePlan], now: int, *, whole: bool) -> Plan:
    settings, spec, stamp = workspace.settings, workspace.spec, workspace.ledger.stamp
    draft.settle()
    digest = draft.digest()
    outlook = forecast(
        spec,
        draft.work,
        history(workspace.ledger, spec),
        Pace(settings.max_in_flight, settings.requests_per_minute),
        seed=int(digest, 16),
    )
    return Plan(
        hash=digest,
        created_at=now,
        model=spec.name,
        simulated=settings.simulated if stamp is None else stamp.mode == "simulated",
        catalogues=catalogues,
        to_make=draft.taken,
        by_resolution=dict(draft.by_resolution),
        forecast=outlook,
        reserve_micros=draft.reserve_micros,
        room_micros=_room(workspace, now),
        whole=whole,
    )


def span(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 90:  # noqa: PLR2004 - up to here seconds say more than minutes
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"  # noqa: PLR2004 - likewise


def _gone(connection: Connection, present: set[str]) -> list[CataloguePlan]:
    """Catalogues of the ledger whose files are no longer there."""
    query = sa.select(_items.c.catalogue, sa.func.count()).where(_items.c.active).group_by(_items.c.catalogue)
    return [CataloguePlan(name, removed=count) for name, count in connection.execute(query) if name not in present]


def _room(workspace: Workspace, now: int) -> int:
    """What today's cap has left."""
    held = workspace.ledger.counters().get(f"day:{_day(now).isoformat()}", Holding())
    return max(0, int(workspace.settings.budget_usd.scaleb(6)) - sum(held))


def _day(now: int) -> date:
    return datetime.fromtimestamp(now / 1000, UTC).date()


def _named(values: Range, convert: Any) -> Mapping[str, Any]:
    return {name: convert(value) for name, value in zip(("p10", "p50", "p90"), values, strict=True)}
