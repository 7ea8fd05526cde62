"""A plan as it is gathered, item by item: what a run would make of each, and the work that this adds up to.

A catalogue is read from its files, as a run would read it, or, when the ledger holds it as it is, from there. What the
work costs is `forecast`'s to say.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from nanobanana_pipeline.catalogue.identity import Request, item_id
from nanobanana_pipeline.catalogue.reading import CatalogueSource
from nanobanana_pipeline.catalogue.rules import FILE_RULES
from nanobanana_pipeline.catalogue.validation import CataloguePrompt, validate
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.entries import Cause
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline.ledger.work import Rerun, tried_by
from nanobanana_pipeline.model_specs.pricing import reservation
from nanobanana_pipeline.reporting.forecast import Work
from nanobanana_pipeline.reporting.history import Expectation, Kind

_items = schema.items
_attempts = schema.attempts

_IDS_A_QUERY: Final = 500
_ITEMS_A_PAGE: Final = 5_000
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
    """An attempt is open; the next run goes on with it, and pays for no other. An overdue one that may be sent again is
    `retried`."""
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run is asked for besides: so many items at most, and what a person wants to be paid for again."""

    limit: int | None = None
    rerun: Rerun | None = None
    resubmit_unknown: bool = False
    root_run_id: str | None = None
    """A run acts once an item, its re-executions included: what has been tried for this root is not tried again."""
    run_id: str | None = None
    """The run itself: a person's word is not about what it has left without an answer, killed and resumed."""
    items: frozenset[str] = frozenset()
    """The only items (by item_id) that may be begun; none given is all of them."""


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of a catalogue: as it is wanted, and what the ledger has of it (None: nothing)."""

    item_id: str
    request_hash: str
    request: Request
    priority: int
    known: Row[*tuple[Any, ...]] | None


class Draft:
    """The work as it is gathered, catalogue by catalogue; memory does not grow with it."""

    def __init__(
        self, workspace: Workspace, today: date, wanted: Wanted, *, on_progress: Callable[[int], None] | None = None
    ) -> None:
        """`on_progress` is told how many items were looked at."""
        self._spec = workspace.spec
        self._max_attempts = workspace.settings.max_attempts
        self._resubmits = workspace.settings.on_unknown == "resubmit"
        self._today = today
        self._wanted = wanted
        self._again = wanted.rerun.states if wanted.rerun else ()
        self._known = _known(wanted.root_run_id)
        self._on_progress = on_progress
        self._seen = 0
        self._seen_to_make = 0
        self._first: list[tuple[tuple[bool, int, str, bool, int], _Item]] = []
        self._expectation = Expectation(workspace.spec, today)
        self._reservations: dict[tuple[str | None, int, int], int] = {}
        self._sum = 0
        self.work: defaultdict[Kind, Work] = defaultdict(Work)
        self.by_resolution: Counter[str] = Counter()
        self.taken = 0
        self.reserve_micros = 0

    def read(self, connection: Connection, source: CatalogueSource) -> CataloguePlan:
        """Add a catalogue from its files."""
        found = CataloguePlan(source.name)
        present = 0
        for batch in validate(source, self._spec):
            found.refused.update(row.rule.value for row in batch.rejected)
            items = _items_of(connection, batch.prompts, self._known)
            self._add(connection, found, items)
            present += sum(item.known.active for item in items if item.known is not None)
        unreadable = found.refused.keys() & {rule.value for rule in FILE_RULES}
        # What is missing from a file that could not be read was not removed by anyone.
        if not unreadable:
            found.removed = _active(connection, source.name) - present
        return found

    def recall(self, connection: Connection, catalogue: str, *, shard: str | None = None) -> CataloguePlan:
        """Add a catalogue, or one shard of it, as the ledger holds it; most of it is not looked at, but counted."""
        found = CataloguePlan(catalogue)
        mine = sa.and_(_items.c.catalogue == catalogue, _items.c.active)
        if shard is not None:
            mine = sa.and_(mine, _items.c.shard == shard)
        settled = [state for state in (ItemState.DONE, ItemState.FAILED) if state not in self._again]
        counts = sa.select(_items.c.state, sa.func.count()).where(mine, _items.c.state.in_(settled))
        for state, count in connection.execute(counts.group_by(_items.c.state)):
            found.items[_STANDING_OF[ItemState(state)]] += count
            self._looked_at(count)
        for items in _pages(connection, self._known, sa.and_(mine, _items.c.state.not_in(settled))):
            self._add(connection, found, items)
        return found

    def digest(self) -> str:
        """A name for exactly this work, whatever the order of its items."""
        named = f"{self._spec.name}:{self.taken}:{self._sum}"
        return hashlib.sha256(named.encode()).hexdigest()[:_HASH_DIGITS]

    def _add(self, connection: Connection, found: CataloguePlan, items: Sequence[_Item]) -> None:
        standings = [(item, self._standing(item)) for item in items]
        edited = [item.item_id for item, standing in standings if standing is Standing.EDITED]
        stored = _stored(connection, edited)
        hashes = {item.request_hash for item, standing in standings if standing in MADE}
        elsewhere = _paid_elsewhere(connection, found.name, hashes)
        for item, standing in standings:
            # Edited back to what it was: that image is still there.
            back = standing is Standing.EDITED and (item.item_id, item.request_hash) in stored
            found.items[Standing.PAID if back else standing] += 1
            if standing in MADE and not back:
                found.duplicates += item.request_hash in elsewhere
                self._want(found.name, item)
        self._looked_at(len(items))

    def _looked_at(self, items: int) -> None:
        self._seen += items
        if self._on_progress is not None:
            self._on_progress(self._seen)

    def _want(self, catalogue: str, item: _Item) -> None:
        """Take an item into the plan; with a limit, only if it is among the first in the order of work."""
        wanted, row = self._wanted, item.known
        if wanted.items and item.item_id not in wanted.items:
            return
        if wanted.limit is None:
            self._take(item)
            return
        self._seen_to_make += 1
        again = row is not None and ItemState(row.state) in self._again
        # New rows get their places when they are entered, after all others and in the order of the file.
        place = (row is None, self._seen_to_make if row is None else row.position)
        self._first.append(((again, -item.priority, catalogue, *place), item))
        if len(self._first) >= 2 * wanted.limit + _ITEMS_A_PAGE:
            self._keep_first(wanted.limit)

    def _keep_first(self, limit: int) -> None:
        self._first.sort(key=lambda entry: entry[0])
        del self._first[limit:]

    def settle(self) -> None:
        """Nothing more is added: with a limit, its items are known now."""
        if self._wanted.limit is not None:
            self._keep_first(self._wanted.limit)
            for _, item in self._first:
                self._take(item)
            self._first.clear()

    def _take(self, item: _Item) -> None:
        request = item.request
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
        # A sum, so that the order of rows is no part of it. To make an image again is another plan.
        tried = item.known.attempts if item.known is not None else 0
        digest = hashlib.sha256(f"{item.item_id}:{item.request_hash}:{tried}".encode()).digest()[:16]
        self._sum = (self._sum + int.from_bytes(digest)) % _MODULUS

    def _standing(self, item: _Item) -> Standing:
        row = item.known
        if row is None:
            return Standing.NEW
        state = ItemState(row.state)
        if state is ItemState.UNKNOWN:
            return Standing.RETRIED if self._may_resubmit(row) else Standing.HELD
        # Registered since its edit, it has its new request, and its last attempt is of the old one.
        old = row.last_hash not in {None, item.request_hash} and state not in {ItemState.DONE, ItemState.FAILED}
        if old or row.request_hash != item.request_hash:
            return Standing.EDITED
        if state is ItemState.OVERDUE and self._may_resubmit(row):
            # Unless its task turns out to have ended: then it costs nothing more.
            return Standing.RETRIED
        if (state in self._again and not row.tried) or (row.attempts and state not in _STANDING_OF):
            return Standing.RETRIED
        return _STANDING_OF.get(state, Standing.NEW)

    def _may_resubmit(self, row: Row[*tuple[Any, ...]]) -> bool:
        """What a run decides of an attempt that it finds held."""
        if self._wanted.resubmit_unknown and row.last_run != self._wanted.run_id:
            return not (row.last_cause == Cause.RESUBMIT and row.last_root == self._wanted.root_run_id)
        return self._resubmits and row.attempts < self._max_attempts


def _items_of(
    connection: Connection, prompts: Sequence[CataloguePrompt], query: sa.Select[*tuple[Any, ...]]
) -> list[_Item]:
    """All samples of some prompts, each with what is known of it."""
    wanted = [
        (item_id(prompt.catalogue, prompt.prompt_id, sample), prompt)
        for prompt in prompts
        for sample in range(1, prompt.samples + 1)
    ]
    known: dict[str, Row[*tuple[Any, ...]]] = {}
    for chunk in _chunks([identity for identity, _ in wanted]):
        for row in connection.execute(query.where(_items.c.item_id.in_(chunk))):
            known[row.item_id] = row
    return [
        _Item(identity, prompt.request_hash, prompt.request, prompt.priority, known.get(identity))
        for identity, prompt in wanted
    ]


def _pages(
    connection: Connection, known: sa.Select[*tuple[Any, ...]], which: sa.ColumnElement[bool]
) -> Iterator[list[_Item]]:
    """Items of one catalogue in the order of work, with their requests, some thousands at a time."""
    query = (
        known.add_columns(schema.requests.c.body)
        .join(schema.requests, schema.requests.c.request_hash == _items.c.request_hash)
        .where(which)
        .order_by(_items.c.position)
        .limit(_ITEMS_A_PAGE)
    )
    after = -1
    while rows := connection.execute(query.where(_items.c.position > after)).all():
        after = rows[-1].position
        yield [_Item(row.item_id, row.request_hash, Request.from_json(row.body), row.priority, row) for row in rows]


def _known(root_run_id: str | None) -> sa.Select[*tuple[Any, ...]]:
    """What the ledger has of items; `tried`: by the run `root_run_id` or one of its re-executions."""
    last = _attempts.alias("last")
    return sa.select(
        _items.c.item_id,
        _items.c.request_hash,
        _items.c.state,
        _items.c.active,
        _items.c.attempts,
        _items.c.position,
        _items.c.priority,
        last.c.request_hash.label("last_hash"),
        last.c.cause.label("last_cause"),
        last.c.run_id.label("last_run"),
        last.c.root_run_id.label("last_root"),
        (sa.false() if root_run_id is None else tried_by(root_run_id)).label("tried"),
    ).outerjoin_from(_items, last, last.c.attempt_id == _items.c.last_attempt_id)


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


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _IDS_A_QUERY] for start in range(0, len(values), _IDS_A_QUERY))
