"""What the book says of one item, of one run or of one day: the rows that an incident is explained from.

Only reading. What is looked for by the beginning of an id, or by its run, is looked for in all rows: seconds in a large
ledger, and nobody waits for it but the person who asked. The sentences are in `reporting`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import OPEN_STATES, AttemptState, ItemState

_attempts = schema.attempts
_items = schema.items
_leases = schema.leases

_RUN_NAMES: Final = (_attempts.c.run_id, _attempts.c.root_run_id, _attempts.c.run_scope)
_TROUBLED: Final = (ItemState.FAILED, ItemState.UNKNOWN, ItemState.OVERDUE, ItemState.DEFERRED)
_MANY: Final = 20


@dataclass(frozen=True, slots=True)
class Work:
    """Some attempts: those of a UTC day (YYYY-MM-DD), or of a run, by its id, its root's or the scope of its cap."""

    day: str | None = None
    run: str | None = None

    @property
    def condition(self) -> sa.ColumnElement[bool]:
        """Whether an attempt is one of them."""
        if self.day is not None:
            return _attempts.c.day == self.day
        return sa.or_(*(name == self.run for name in _RUN_NAMES))


def item(connection: Connection, item_id: str) -> Row[Any] | None:
    """An item, with what it asks for."""
    requests = schema.requests
    query = sa.select(_items, requests.c.model, requests.c.resolution, requests.c.body).join(
        requests, requests.c.request_hash == _items.c.request_hash
    )
    return connection.execute(query.where(_items.c.item_id == item_id)).one_or_none()


def items_that_begin(connection: Connection, text: str) -> list[str]:
    """Items whose id, or an attempt of theirs, begins so; or that a task of this id was for; a few at most."""
    by_attempt = sa.select(_attempts.c.item_id).where(
        sa.or_(_begins(_attempts.c.attempt_id, text), _attempts.c.task_id == text)
    )
    by_id = sa.select(_items.c.item_id).where(_begins(_items.c.item_id, text))
    return list(connection.execute(sa.union(by_id, by_attempt).limit(3)).scalars())


def runs_that_begin(connection: Connection, text: str) -> list[str]:
    """Ids of runs (also of re-executed ones, commands and backfills) that begin so; a few at most."""
    names = sa.union(*(sa.select(name).where(_begins(name, text)).distinct() for name in _RUN_NAMES))
    return list(connection.execute(names.limit(5)).scalars())


def _begins(column: sa.ColumnElement[str], text: str) -> sa.ColumnElement[bool]:
    return column.startswith(text, autoescape=True)


def attempts_of(connection: Connection, item_id: str) -> Sequence[Row[Any]]:
    """All attempts of an item, in order."""
    query = sa.select(_attempts).where(_attempts.c.item_id == item_id).order_by(_attempts.c.attempt)
    return connection.execute(query).all()


def lease_of(connection: Connection, owner: str) -> Row[Any] | None:
    """The lease of the worker that an open attempt belongs to; None when it has left the book."""
    return connection.execute(sa.select(_leases).where(_leases.c.owner == owner)).one_or_none()


@dataclass(frozen=True, slots=True)
class Extent:
    """How much work there was, and from when to when (milliseconds)."""

    attempts: int
    items: int
    shards: list[str]
    first: int
    last: int


def extent(connection: Connection, work: Work) -> Extent:
    """Its size; no attempts at all when there was none."""
    created = _attempts.c.created_at
    ended = sa.func.max(sa.func.coalesce(_attempts.c.stored_at, _attempts.c.closed_at, created))
    query = sa.select(sa.func.count(), sa.func.count(sa.distinct(_attempts.c.item_id)), sa.func.min(created), ended)
    attempts, items, first, last = connection.execute(query.where(work.condition)).one()
    shards = sa.select(_attempts.c.shard).where(work.condition).distinct().order_by(_attempts.c.shard)
    return Extent(attempts, items, list(connection.execute(shards).scalars()), first or 0, last or 0)


def by(connection: Connection, work: Work, *names: str) -> list[Mapping[str, Any]]:
    """Its attempts, counted and summed up by the values of some columns, the most frequent first."""
    columns = [_attempts.c[name] for name in names]
    return _sums(connection, work, columns)


def by_time(connection: Connection, work: Work, step_ms: int) -> list[Mapping[str, Any]]:
    """Its attempts by when they were begun, in steps (`since`, milliseconds), and by state."""
    since = (_attempts.c.created_at - _attempts.c.created_at % step_ms).label("since")
    return sorted(_sums(connection, work, [since, _attempts.c.state]), key=lambda row: row["since"])


def _sums(connection: Connection, work: Work, columns: Sequence[Any]) -> list[Mapping[str, Any]]:
    whole = {
        "attempts": sa.func.count(),
        "resubmits": sa.func.sum(_attempts.c.submits - 1),
        "polls": sa.func.sum(_attempts.c.polls),
        "tokens": sa.func.sum(sa.func.coalesce(_attempts.c.total_tokens, 0)),
        "reserved_micros": sa.func.sum(_attempts.c.reserved_micros),
        "cost_micros": sa.func.sum(_attempts.c.cost_micros),
        "at_risk_micros": sa.func.sum(_attempts.c.at_risk_micros),
        "first": sa.func.min(_attempts.c.created_at),
        "last": sa.func.max(_attempts.c.created_at),
    }
    query = (
        sa.select(*columns, *(value.label(name) for name, value in whole.items()))
        .where(work.condition)
        .group_by(*columns)
        .order_by(sa.func.count().desc())
    )
    # PostgreSQL sums big integers to a decimal.
    return [
        {name: int(value) if name in whole else value for name, value in row.items()}
        for row in connection.execute(query).mappings()
    ]


def latencies_ms(connection: Connection, work: Work, shares: Sequence[float]) -> list[int]:
    """How long tasks took from their acceptance to their end, at these shares of all (0.5: the median); none if none.

    Times are milliseconds.
    """
    taken = _attempts.c.completed_at - _attempts.c.submitted_at
    ended = sa.and_(work.condition, taken >= 0)
    count = connection.execute(sa.select(sa.func.count()).where(ended)).scalar_one()
    places = [min(count - 1, int(count * share)) for share in shares] if count else []
    ordered = sa.select(taken).where(ended).order_by(taken)
    return [connection.execute(ordered.offset(place).limit(1)).scalar_one() for place in places]


def troubled(connection: Connection, work: Work) -> list[Row[Any]]:
    """Items of this work that have no image now and won't get one by themselves, or have to wait; some of them."""
    query = (
        sa.select(_attempts, _items.c.state.label("item_state"), _items.c.note)
        .join(_attempts, _attempts.c.attempt_id == _items.c.last_attempt_id)
        .where(work.condition, _items.c.active, _items.c.state.in_([state.value for state in _TROUBLED]))
        .order_by(_items.c.position)
        .limit(_MANY)
    )
    return list(connection.execute(query).all())


def waiting(connection: Connection, shards: Sequence[str]) -> list[tuple[str, int]]:
    """Why items of these shards are deferred, and how many for each reason, as it stands now."""
    count = sa.func.count()
    query = (
        sa.select(sa.func.coalesce(_items.c.note, "no reason was noted"), count)
        .where(_items.c.shard.in_(shards[:500]), _items.c.state == ItemState.DEFERRED.value, _items.c.active)
        .group_by(_items.c.note)
        .order_by(count.desc())
        .limit(_MANY)
    )
    return [(note, number) for note, number in connection.execute(query)]


def is_open(state: str) -> bool:
    """Whether an attempt in this state may still change by itself or by a person's word."""
    return AttemptState(state) in OPEN_STATES
