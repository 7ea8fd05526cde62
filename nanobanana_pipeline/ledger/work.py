"""What is left to do: shards with work, a shard's open attempts, and its items that wait for an attempt.

Only questions live here, plus taking over what a dead worker left; answers are read page by page, so that memory does
not grow with the shard.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.entries import Attempt, Candidate, Cause
from nanobanana_pipeline.ledger.leases import expired_owners
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import OPEN_STATES, UNDECIDED_STATES, WAITING_STATES, AttemptState, ItemState
from nanobanana_pipeline.model_specs.kinds import PUT_OFF

_items = schema.items
_attempts = schema.attempts
_requests = schema.requests
_shards = schema.shards

PAGE = 500


class Rerun(StrEnum):
    """What a person asks to be paid for again; each acts once an item under one root run."""

    RETRY_FAILED = "retry_failed"
    REGENERATE = "regenerate"

    @classmethod
    def of(cls, *, regenerate: bool, retry_failed: bool) -> "Rerun | None":
        """What was asked for; to regenerate everything includes what failed."""
        return cls.REGENERATE if regenerate else cls.RETRY_FAILED if retry_failed else None

    @property
    def states(self) -> tuple[ItemState, ...]:
        """The items it is about."""
        return (ItemState.FAILED,) if self is Rerun.RETRY_FAILED else (ItemState.DONE, ItemState.FAILED)


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A shard's items by state; inactive items count only while an attempt of theirs is open."""

    shard: str
    catalogue: str
    number: int
    prompts: int
    states: dict[ItemState, int]
    priority: int = 0
    """The highest of its items that wait for an attempt."""

    @property
    def left(self) -> int:
        """Items that a run could do something about now."""
        resumable = (ItemState.PENDING, ItemState.DEFERRED, ItemState.OPEN, ItemState.OVERDUE)
        return sum(self.states.get(state, 0) for state in resumable)

    @property
    def items(self) -> int:
        """All the items counted."""
        return sum(self.states.values())


@dataclass(frozen=True, slots=True)
class NamedItem:
    """An item, and what a person called it."""

    name: str
    item_id: str
    shard: str


@dataclass(frozen=True, slots=True)
class StoredAttempt:
    """An attempt whose images were stored, and those as the ledger has them (JSON; None: it does not know them)."""

    attempt: Attempt
    images: str | None


@dataclass(frozen=True, slots=True)
class TakeOver:
    """What became of a shard's open attempts: ours to finish, and those whose owners may yet be alive.

    `holders` are those owners, with the end of their leases (database's milliseconds); `now` is the same clock.
    """

    attempts: list[Attempt]
    holders: dict[str, int]
    now: int


def shard_work(
    connection: Connection, catalogues: Sequence[str] | None = None, *, shard: str | None = None
) -> list[ShardWork]:
    """Every shard (or those of some catalogues, or one) with its items by state, in order of catalogue and number."""
    open_states = [ItemState.OPEN.value, ItemState.UNKNOWN.value, ItemState.OVERDUE.value]
    counts: dict[str, dict[ItemState, int]] = {}
    query = (
        sa.select(_items.c.shard, _items.c.state, sa.func.count().label("n"))
        .where(sa.or_(_items.c.active, _items.c.state.in_(open_states)))
        .group_by(_items.c.shard, _items.c.state)
    )
    urgent = (
        sa.select(_items.c.shard, sa.func.count().label("items"), sa.func.max(_items.c.priority).label("highest"))
        .where(schema.PRIORITISED)
        .group_by(_items.c.shard)
    )
    listing = sa.select(_shards).order_by(_shards.c.catalogue, _shards.c.number)
    if shard is not None:
        query = query.where(_items.c.shard == shard)
        urgent = urgent.where(_items.c.shard == shard)
        listing = listing.where(_shards.c.shard == shard)
    if catalogues is not None:
        listing = listing.where(_shards.c.catalogue.in_(catalogues))
    for row in connection.execute(query):
        counts.setdefault(row.shard, {})[ItemState(row.state)] = row.n
    prioritised: dict[str, Any] = {row.shard: row for row in connection.execute(urgent)}
    return [
        ShardWork(
            row.shard,
            row.catalogue,
            row.number,
            row.prompts,
            counts.get(row.shard, {}),
            _highest_priority(counts.get(row.shard, {}), prioritised.get(row.shard)),
        )
        for row in connection.execute(listing)
    ]


def _highest_priority(states: dict[ItemState, int], prioritised: Row[Any] | None) -> int:
    if prioritised is None:
        return 0
    # Those that the index leaves out have priority 0.
    others = sum(states.get(state, 0) for state in WAITING_STATES) > prioritised.items
    return max(prioritised.highest, 0) if others else prioritised.highest


def take_over(postings: Postings, shard: str, owner: str, *, grace_s: float) -> TakeOver:
    """Make `owner` the owner of every open attempt of the shard whose own worker is gone; returns those.

    What such a worker was `submitting` may or may not have left its machine: it becomes `unknown`, never sent again by
    itself. What was `submitted` is polled on by whoever owns it now.
    """
    query = (
        sa.select(*_ATTEMPT_COLUMNS, _attempts.c.owner)
        .join(_requests, _requests.c.request_hash == _attempts.c.request_hash)
        .where(_attempts.c.shard == shard, is_open_attempt())
        .order_by(_attempts.c.created_at)
        .with_for_update(of=_attempts)
    )
    rows = postings.execute(query).all()
    owners = {row.owner for row in rows} - {owner}
    # Whoever died with nothing open goes with them: else it would be shown as at work for ever.
    leases = sa.select(schema.leases.c.owner).where(schema.leases.c.shard == shard, schema.leases.c.owner != owner)
    others = owners.union(postings.execute(leases).scalars())
    free, held = expired_owners(postings.connection, postings.now, others, grace_s=grace_s)
    ours: list[Attempt] = []
    for row in rows:
        if row.owner not in free:
            continue
        attempt = attempt_of(row)
        if attempt.state is AttemptState.SUBMITTING:
            postings.move(
                attempt,
                AttemptState.UNKNOWN,
                error_kind="unknown_outcome",
                error_message="the process that was submitting it ended before an answer was recorded",
            )
        ours.append(attempt)
    if free:
        postings.execute(
            _attempts.update()
            .where(_attempts.c.shard == shard, is_open_attempt(), _attempts.c.owner.in_(free))
            .values(owner=owner)
        )
        gone = schema.leases.delete().where(schema.leases.c.owner.in_(free), schema.leases.c.shard == shard)
        postings.execute(gone)
    return TakeOver(ours, {name: end for name, end in held.items() if name in owners}, postings.now)


def candidates(
    connection: Connection,
    shard: str,
    *,
    after: Candidate | None = None,
    rerun: Rerun | None = None,
    root_run_id: str = "",
    items: Sequence[str] = (),
    undecided: bool = False,
    limit: int = PAGE,
) -> list[Candidate]:
    """The next page of active items that wait for an attempt: by priority, then in catalogue order, after `after`.

    An item whose priority is raised beyond that of `after` meanwhile has its turn in the next run. With `rerun` it is
    those that a person wants to pay for again, and that this root run has not tried. With `items` it is only
    these, by item_id. With `undecided`, items whose outcome is held have their turn among those that wait.
    """
    waiting = (*WAITING_STATES, *UNDECIDED_STATES) if undecided else WAITING_STATES
    states = rerun.states if rerun else waiting
    failures = _failures(_items.c.item_id, _items.c.request_hash)
    last = sa.case((_attempts.c.request_hash == _items.c.request_hash, _attempts.c.state)).label("last_state")
    query = (
        sa.select(
            _items,
            _requests.c.model,
            _requests.c.resolution,
            _requests.c.body,
            sa.case((_items.c.attempts > 0, failures), else_=0).label("failures"),
            last,
        )
        .join(_requests, _requests.c.request_hash == _items.c.request_hash)
        .outerjoin(_attempts, _attempts.c.attempt_id == _items.c.last_attempt_id)
        .where(
            _items.c.shard == shard,
            _items.c.state.in_([state.value for state in states]),
            _items.c.active,
        )
        .order_by(_items.c.priority.desc(), _items.c.position)
        .limit(limit)
    )
    if after is not None:
        same = sa.and_(_items.c.priority == after.priority, _items.c.position > after.position)
        query = query.where(sa.or_(_items.c.priority < after.priority, same))
    if items:
        query = query.where(_items.c.item_id.in_(items))
    if rerun is not None:
        query = query.where(~tried_by(root_run_id))
    return [
        Candidate(
            item_id=row.item_id,
            catalogue=row.catalogue,
            prompt_id=row.prompt_id,
            sample=row.sample,
            shard=row.shard,
            position=row.position,
            priority=row.priority,
            request_hash=row.request_hash,
            campaign=row.campaign,
            model=row.model,
            resolution=row.resolution,
            body=row.body,
            state=ItemState(row.state),
            attempts=row.attempts,
            # A person who asks for failed items again grants them a fresh set of attempts.
            failures=0 if rerun else row.failures,
            cause=Cause(rerun.value) if rerun else _CAUSE_AFTER.get(row.last_state, Cause.NEW),
        )
        for row in connection.execute(query)
    ]


def tried_by(root_run_id: str) -> sa.Exists:
    """Whether a run, or one that repeats it, has tried an item; a refusal that put it off has tried nothing."""
    earlier = _attempts.alias("earlier")
    kind = sa.func.coalesce(earlier.c.error_kind, "")
    return sa.exists().where(
        earlier.c.item_id == _items.c.item_id,
        # Whatever for: what it has just made is no old image, and what has just failed was tried.
        earlier.c.root_run_id == root_run_id,
        sa.or_(earlier.c.state != AttemptState.REFUSED.value, kind.not_in([one.value for one in PUT_OFF])),
    )


def first_to_begin(
    connection: Connection,
    limit: int,
    *,
    rerun: Rerun | None,
    unknown_too: bool,
    max_attempts: int | None = None,
    catalogues: Sequence[str] | None = None,
) -> dict[str, int]:
    """The `limit` items that have their turn first, over all shards: how many of them each shard has.

    What waits comes before what is only to be paid for again; each by priority, then by catalogue and in its order.
    With `unknown_too`, items of unknown outcome wait as well, and overdue ones: each takes its turn, though one may yet
    settle without being sent again. Those with `max_attempts` (None: no bound) have none: the settings alone don't send
    them again, and they took the turns of all others, run after run.
    """
    again = rerun.states if rerun else ()
    last = _items.c.state.in_([state.value for state in again])
    begun = _items.c.state.in_([state.value for state in (*WAITING_STATES, *again)])
    if unknown_too:
        begun = sa.or_(begun, _undecided(max_attempts))
    # By code points on every database, as everywhere else.
    name = sa.collate(_items.c.catalogue, "C" if connection.dialect.name == "postgresql" else "BINARY")
    query = (
        sa.select(_items.c.shard)
        .where(_items.c.active, begun)
        .order_by(sa.case((last, 1), else_=0), _items.c.priority.desc(), name, _items.c.position)
        .limit(limit)
    )
    if catalogues is not None:
        query = query.where(_items.c.catalogue.in_(catalogues))
    chosen = query.subquery()
    counts = sa.select(chosen.c.shard, sa.func.count().label("items")).group_by(chosen.c.shard)
    return {row.shard: row.items for row in connection.execute(counts)}


def sent_again(connection: Connection, shards: Sequence[str], max_attempts: int) -> dict[str, int]:
    """How many items of unknown or overdue outcome runs send again by the settings alone, by shard."""
    found: dict[str, int] = {}
    for start in range(0, len(shards), PAGE):
        query = (
            sa.select(_items.c.shard, sa.func.count().label("items"))
            .where(_items.c.shard.in_(shards[start : start + PAGE]), _items.c.active, _undecided(max_attempts))
            .group_by(_items.c.shard)
        )
        found |= {row.shard: row.items for row in connection.execute(query)}
    return found


def _undecided(max_attempts: int | None) -> sa.ColumnElement[bool]:
    undecided = _items.c.state.in_([state.value for state in UNDECIDED_STATES])
    return undecided if max_attempts is None else sa.and_(undecided, _items.c.attempts < max_attempts)


def items_begun(connection: Connection, shard: str, root_run_id: str) -> int:
    """How many items of the shard a run and its repetitions have sent already; one that was refused costs nothing."""
    query = sa.select(sa.func.count(_attempts.c.item_id.distinct())).where(
        _attempts.c.shard == shard,
        _attempts.c.root_run_id == root_run_id,
        _attempts.c.state != AttemptState.REFUSED.value,
    )
    return connection.execute(query).scalar_one()


def items_named(connection: Connection, names: Sequence[str], catalogue: str | None = None) -> list[NamedItem]:
    """The active items that have one of these names: an item_id, or a prompt_id, which means all of its samples."""
    found: list[NamedItem] = []
    for name in names:
        query = sa.select(_items.c.item_id, _items.c.shard).where(
            sa.or_(_items.c.item_id == name, _items.c.prompt_id == name), _items.c.active
        )
        if catalogue is not None:
            query = query.where(_items.c.catalogue == catalogue)
        found += [NamedItem(name, row.item_id, row.shard) for row in connection.execute(query)]
    return found


def stored_attempts(connection: Connection, item_ids: Sequence[str]) -> list[StoredAttempt]:
    """The attempts that gave these items their images of today."""
    latest: dict[str, StoredAttempt] = {}
    for start in range(0, len(item_ids), PAGE):
        query = (
            sa.select(*_ATTEMPT_COLUMNS, _attempts.c.images)
            .join(_requests, _requests.c.request_hash == _attempts.c.request_hash)
            .join(
                _items,
                (_items.c.item_id == _attempts.c.item_id) & (_items.c.request_hash == _attempts.c.request_hash),
            )
            .where(_items.c.item_id.in_(item_ids[start : start + PAGE]), _attempts.c.state == AttemptState.STORED.value)
            .order_by(_attempts.c.attempt)
        )
        latest |= {row.item_id: StoredAttempt(attempt_of(row), row.images) for row in connection.execute(query)}
    return list(latest.values())


def open_attempts(
    connection: Connection, *, states: Sequence[AttemptState] = OPEN_STATES, catalogue: str | None = None
) -> Iterator[Attempt]:
    """Open attempts in the given states, oldest first."""
    query = (
        sa.select(*_ATTEMPT_COLUMNS)
        .join(_requests, _requests.c.request_hash == _attempts.c.request_hash)
        .where(is_open_attempt(), _attempts.c.state.in_([state.value for state in states]))
        .order_by(_attempts.c.created_at)
    )
    if catalogue is not None:
        query = query.where(_attempts.c.catalogue == catalogue)
    for row in connection.execute(query):
        yield attempt_of(row)


def _failures(item_id: sa.Column[str], request_hash: sa.Column[str]) -> sa.ScalarSelect[int]:
    """How many attempts of the item's request the provider failed."""
    failed = _attempts.alias("failed")
    return (
        sa.select(sa.func.count())
        .where(
            failed.c.item_id == item_id,
            failed.c.request_hash == request_hash,
            failed.c.error_kind == "provider_failure",
        )
        .scalar_subquery()
    )


_CAUSE_AFTER = {
    AttemptState.FAILED: Cause.RETRY,
    AttemptState.UNUSABLE: Cause.REGENERATE,
    AttemptState.ABANDONED: Cause.RESUBMIT,
    AttemptState.UNKNOWN: Cause.RESUBMIT,
    AttemptState.OVERDUE: Cause.RESUBMIT,
}
"""Why an item is tried again, by how its last attempt (of the same request) ended, or is held."""

_OF_OTHERS = {
    "body": _requests.c.body,
    "failures": _failures(_attempts.c.item_id, _attempts.c.request_hash).label("failures"),
}
_ATTEMPT_COLUMNS = [
    _OF_OTHERS[name] if name in _OF_OTHERS else _attempts.c[name] for name in Attempt.__dataclass_fields__
]
"""In the order of an `Attempt`'s fields."""


def attempt_of(row: Row[Any]) -> Attempt:
    """An attempt from a row that begins with `_ATTEMPT_COLUMNS`: its columns, its request's body, its failures."""
    # By place: by name it was most of what taking ten thousand over took.
    values: Sequence[Any] = row
    attempt = Attempt(*values[: len(_ATTEMPT_COLUMNS)])
    attempt.state = AttemptState(attempt.state)
    attempt.cause = Cause(attempt.cause)
    return attempt


def is_open_attempt() -> sa.TextClause:
    """Whether a row of `attempts` is an open one."""
    # Literal, as in the partial indexes: with bound parameters SQLite would not use them.
    return sa.text("attempts.state IN (" + ", ".join(f"'{state}'" for state in OPEN_STATES) + ")")
