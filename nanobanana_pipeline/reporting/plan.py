"""What a run would do and cost, before anything is spent: a dry run of registration and of the choice of work.

Nothing is registered and no table is written; catalogues are read as a run would read them. What it costs is
`forecast`'s to say; whether it may be spent, `approval`'s.
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from nanobanana_pipeline.catalogue.identity import item_id
from nanobanana_pipeline.catalogue.reading import CatalogueSource
from nanobanana_pipeline.catalogue.rules import FILE_RULES
from nanobanana_pipeline.catalogue.validation import CataloguePrompt, validate
from nanobanana_pipeline.generation.intake import chosen_sources
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import budget, schema
from nanobanana_pipeline.ledger.states import AttemptState, Holding, ItemState
from nanobanana_pipeline.model_specs.pricing import reservation
from nanobanana_pipeline.reporting.costs import shown
from nanobanana_pipeline.reporting.forecast import Forecast, Pace, Range, Work, forecast
from nanobanana_pipeline.reporting.history import Expectation, Kind, history

_items = schema.items
_attempts = schema.attempts

_IDS_A_QUERY: Final = 500
_HASH_DIGITS: Final = 12
_MODULUS: Final = 2**128


class Standing(StrEnum):
    """What a run would make of an item. The first three are made and paid for; the others are not."""

    NEW = "new"
    EDITED = "edited"
    RETRIED = "retried"
    PAID = "paid"
    """There is an image of this very request."""
    IN_FLIGHT = "in_flight"
    """An attempt is open; the next run goes on with it, and pays for no other."""
    HELD = "held"
    """The outcome of an attempt is unknown: a person decides."""
    FAILED = "failed"
    """Failed for good, unless a person asks for it again."""


_STANDING_OF: Final = {
    ItemState.DONE: Standing.PAID,
    ItemState.FAILED: Standing.FAILED,
    ItemState.OPEN: Standing.IN_FLIGHT,
    ItemState.OVERDUE: Standing.IN_FLIGHT,
}
MADE: Final = (Standing.NEW, Standing.EDITED, Standing.RETRIED)


@dataclass(slots=True)
class CataloguePlan:
    """A catalogue's items by standing, and what else a person should know of it."""

    name: str
    items: Counter[Standing] = field(default_factory=Counter)
    removed: int = 0
    """Items that are no longer in the catalogue; their images stay."""
    refused: Counter[str] = field(default_factory=Counter)
    """Rows that break a rule, by rule; nothing is spent on them."""
    duplicates: int = 0
    """Of the items to be made, those whose request already has an image under another catalogue's name."""

    @property
    def to_make(self) -> int:
        """Items that would be paid for."""
        return sum(self.items[standing] for standing in MADE)


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


def plan(workspace: Workspace, names: Sequence[str] | None = None, *, limit: int | None = None) -> Plan:
    """What a run over the catalogues (all, or those named) would do and cost, `limit` items in all at most.

    Reads the catalogues, the ledger and nothing else, and writes nothing. Raises `UserError` for an unknown catalogue,
    and when no price is known for today.
    """
    now = time.time_ns() // 1_000_000
    draft = _Draft(workspace, datetime.fromtimestamp(now / 1000, UTC), limit)
    sources = chosen_sources(workspace.settings, names)
    with workspace.ledger.database.read() as connection:
        catalogues = [draft.add(connection, source) for source in sources]
        if names is None:
            catalogues += _gone(connection, {source.name for source in sources})
    settings, spec, stamp = workspace.settings, workspace.spec, workspace.ledger.stamp
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
    )


class _Draft:
    """The work as it is gathered, catalogue by catalogue; memory does not grow with it."""

    def __init__(self, workspace: Workspace, now: datetime, limit: int | None) -> None:
        self._workspace = workspace
        self._spec = workspace.spec
        self._today = now.date()
        self._limit = limit
        self._expectation = Expectation(workspace.spec, self._today)
        self._reservations: dict[tuple[str | None, int, int], int] = {}
        self._sum = 0
        self.work: defaultdict[Kind, Work] = defaultdict(Work)
        self.by_resolution: Counter[str] = Counter()
        self.taken = 0
        self.reserve_micros = 0

    def add(self, connection: Connection, source: CatalogueSource) -> CataloguePlan:
        """Add a catalogue."""
        found = CataloguePlan(source.name)
        present = 0
        for batch in validate(source, self._spec):
            found.refused.update(row.rule.value for row in batch.rejected)
            present += self._add_prompts(connection, found, batch.prompts)
        unreadable = found.refused.keys() & {rule.value for rule in FILE_RULES}
        # What is missing from a file that could not be read was not removed by anyone.
        if not unreadable:
            found.removed = _active(connection, source.name) - present
        return found

    def digest(self) -> str:
        """A name for exactly this work, whatever the order of its items."""
        named = f"{self._spec.name}:{self.taken}:{self._sum}"
        return hashlib.sha256(named.encode()).hexdigest()[:_HASH_DIGITS]

    def _add_prompts(self, connection: Connection, found: CataloguePlan, prompts: Sequence[CataloguePrompt]) -> int:
        """Add prompts; returns how many of their items are active in the ledger already."""
        wanted = [
            (item_id(prompt.catalogue, prompt.prompt_id, sample), prompt)
            for prompt in prompts
            for sample in range(1, prompt.samples + 1)
        ]
        known = _known(connection, [identity for identity, _ in wanted])
        standings = [
            (identity, prompt, self._standing(known.get(identity), prompt.request_hash)) for identity, prompt in wanted
        ]
        edited = [(identity, prompt) for identity, prompt, standing in standings if standing is Standing.EDITED]
        stored = _stored(connection, [identity for identity, _ in edited])
        hashes = {prompt.request_hash for _, prompt, standing in standings if standing in MADE}
        elsewhere = _paid_elsewhere(connection, found.name, hashes)
        for identity, prompt, standing in standings:
            # Edited back to what it was: that image is still there.
            back = standing is Standing.EDITED and (identity, prompt.request_hash) in stored
            found.items[Standing.PAID if back else standing] += 1
            if standing in MADE and not back:
                found.duplicates += prompt.request_hash in elsewhere
                self._take(identity, prompt)
        return sum(row.active for row in known.values())

    def _take(self, identity: str, prompt: CataloguePrompt) -> None:
        if self._limit is not None and self.taken >= self._limit:
            return
        request = prompt.request
        kind = Kind.of(request, self._spec)
        work = self.work[kind]
        work.items += 1
        work.expected_micros += self._expectation.micros(request)
        self.by_resolution[kind.resolution] += 1
        self.taken += 1
        key = request.resolution, len(request.prompt), len(request.image_urls)
        if key not in self._reservations:
            self._reservations[key] = reservation(self._spec, key[1], key[2], key[0], self._today)
        self.reserve_micros += self._reservations[key]
        # A sum, so that the order of rows is no part of it.
        digest = hashlib.sha256(f"{identity}:{prompt.request_hash}".encode()).digest()[:16]
        self._sum = (self._sum + int.from_bytes(digest)) % _MODULUS

    def _standing(self, row: Row[*tuple[Any, ...]] | None, request_hash: str) -> Standing:
        if row is None:
            return Standing.NEW
        state = ItemState(row.state)
        if state is ItemState.UNKNOWN:
            settings = self._workspace.settings
            again = settings.on_unknown == "resubmit" and row.attempts < settings.max_attempts
            return Standing.RETRIED if again else Standing.HELD
        if row.request_hash != request_hash:
            return Standing.EDITED
        if state in _STANDING_OF:
            return _STANDING_OF[state]
        # It waits for an attempt: its first, the first since an edit, or one more.
        if row.attempts == 0:
            return Standing.NEW
        return Standing.RETRIED if row.last_hash == request_hash else Standing.EDITED


def span(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 90:  # noqa: PLR2004 - up to here seconds say more than minutes
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"  # noqa: PLR2004 - likewise


def _known(connection: Connection, identities: Sequence[str]) -> dict[str, Row[*tuple[Any, ...]]]:
    last = _attempts.alias("last")
    known: dict[str, Row[*tuple[Any, ...]]] = {}
    for chunk in _chunks(identities):
        query = (
            sa.select(
                _items.c.item_id,
                _items.c.request_hash,
                _items.c.state,
                _items.c.active,
                _items.c.attempts,
                last.c.request_hash.label("last_hash"),
            )
            .outerjoin(last, last.c.attempt_id == _items.c.last_attempt_id)
            .where(_items.c.item_id.in_(chunk))
        )
        for row in connection.execute(query):
            known[row.item_id] = row
    return known


def _stored(connection: Connection, identities: Sequence[str]) -> set[tuple[str, str]]:
    """Item and request of every image that these items ever got."""
    found: set[tuple[str, str]] = set()
    for chunk in _chunks(identities):
        query = sa.select(_attempts.c.item_id, _attempts.c.request_hash).where(
            _attempts.c.item_id.in_(chunk), _attempts.c.state == AttemptState.STORED.value
        )
        found.update((row.item_id, row.request_hash) for row in connection.execute(query))
    return found


def _paid_elsewhere(connection: Connection, catalogue: str, hashes: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for chunk in _chunks(sorted(hashes)):
        query = sa.select(_items.c.request_hash).where(
            _items.c.request_hash.in_(chunk),
            _items.c.catalogue != catalogue,
            _items.c.state == ItemState.DONE.value,
        )
        found.update(connection.execute(query).scalars())
    return found


def _active(connection: Connection, catalogue: str) -> int:
    query = sa.select(sa.func.count()).where(_items.c.catalogue == catalogue, _items.c.active)
    return connection.execute(query).scalar_one()


def _gone(connection: Connection, present: set[str]) -> list[CataloguePlan]:
    """Catalogues of the ledger whose files are no longer there."""
    query = sa.select(_items.c.catalogue, sa.func.count()).where(_items.c.active).group_by(_items.c.catalogue)
    return [CataloguePlan(name, removed=count) for name, count in connection.execute(query) if name not in present]


def _room(workspace: Workspace, now: int) -> int:
    """What today's cap has left."""
    day = datetime.fromtimestamp(now / 1000, UTC).date().isoformat()
    held = workspace.ledger.counters().get(f"day:{day}", Holding())
    return max(0, int(workspace.settings.budget_usd.scaleb(6)) - sum(held))


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _IDS_A_QUERY] for start in range(0, len(values), _IDS_A_QUERY))


def _named(values: Range, convert: Any) -> Mapping[str, Any]:
    return {name: convert(value) for name, value in zip(("p10", "p50", "p90"), values, strict=True)}
