"""What the book says of a shard, a catalogue or the whole: the rows that tables, reports and status are made of.

Only reading. Money stays in integer micro-dollars and times in milliseconds; `publishing` gives them their table types.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import AttemptState, ItemState

_items = schema.items
_attempts = schema.attempts
_requests = schema.requests
_shards = schema.shards

_IDS_A_QUERY: Final = 500


@dataclass(frozen=True, slots=True)
class ItemStatement:
    """An item, its request's body, the attempt that speaks for its current request, and sums over all its attempts."""

    item: Row[Any]
    attempt: Row[Any] | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cost_micros: int
    at_risk_micros: int


def shard_statement(connection: Connection, shard: str) -> tuple[list[ItemStatement], list[Row[Any]]]:
    """A shard's items in catalogue order (removed ones included), and all its attempts in order of item and number."""
    items = connection.execute(
        sa.select(_items, _requests.c.model, _requests.c.resolution, _requests.c.body)
        .join(_requests, _requests.c.request_hash == _items.c.request_hash)
        .where(_items.c.shard == shard)
        .order_by(_items.c.position)
    ).all()
    attempts = connection.execute(
        sa.select(_attempts).where(_attempts.c.shard == shard).order_by(_attempts.c.item_id, _attempts.c.attempt)
    ).all()
    of_item: dict[str, list[Row[Any]]] = {}
    for attempt in attempts:
        of_item.setdefault(attempt.item_id, []).append(attempt)
    return [_statement(item, of_item.get(item.item_id, [])) for item in items], list(attempts)


def prompts(connection: Connection, catalogue: str) -> Iterator[Row[Any]]:
    """A catalogue's prompts in order, removed ones included: the row of sample 1, with `samples` wanted now."""
    wanted = (
        sa.select(_items.c.prompt_id, sa.func.count().label("samples"))
        .where(_items.c.catalogue == catalogue, _items.c.active)
        .group_by(_items.c.prompt_id)
        .subquery()
    )
    samples = sa.func.coalesce(wanted.c.samples, 0).label("samples")
    query = (
        sa.select(_items, samples, _requests.c.body, _requests.c.resolution)
        .join(_requests, _requests.c.request_hash == _items.c.request_hash)
        .outerjoin(wanted, wanted.c.prompt_id == _items.c.prompt_id)
        .where(_items.c.catalogue == catalogue, _items.c.sample == 1)
        .order_by(_items.c.position)
    )
    yield from connection.execution_options(yield_per=5000).execute(query)


def shards_of_run(connection: Connection, run_scope: str) -> list[str]:
    """The shards that a run made attempts in."""
    query = sa.select(_attempts.c.shard).where(_attempts.c.run_scope == run_scope).distinct()
    return list(connection.execute(query).scalars())


def all_shards(connection: Connection) -> list[str]:
    """Every shard there is."""
    return list(connection.execute(sa.select(_shards.c.shard).order_by(_shards.c.shard)).scalars())


def catalogue_of_shard(connection: Connection, shard: str) -> str:
    """The catalogue a shard belongs to. Raises `UserError` for a shard that nobody registered."""
    name = connection.execute(sa.select(_shards.c.catalogue).where(_shards.c.shard == shard)).scalar_one_or_none()
    if name is None:
        raise UserError(f"there is no shard {shard}: materialise `prompts` first, or choose one that is listed")
    return name


def paid_elsewhere(connection: Connection, catalogue: str, *, shard: str | None = None) -> tuple[int, int, str | None]:
    """How many items (of a catalogue, or of one shard) wait for their first image; for how many another name has it.

    That is an image of the very same request, in another catalogue; the third value is the name of one such.
    """
    other = _items.alias("other")
    waiting = sa.and_(
        _items.c.catalogue == catalogue, _items.c.active, _items.c.state == ItemState.PENDING, _items.c.attempts == 0
    )
    if shard is not None:
        waiting &= _items.c.shard == shard
    twin = (
        sa.select(sa.func.min(other.c.catalogue))
        .where(
            other.c.request_hash == _items.c.request_hash,
            other.c.catalogue != catalogue,
            other.c.state == ItemState.DONE,
        )
        .scalar_subquery()
    )
    twins = sa.select(twin.label("name")).where(waiting).subquery()
    row = connection.execute(sa.select(sa.func.count(), sa.func.count(twins.c.name), sa.func.max(twins.c.name))).one()
    return row[0], row[1], row[2]


def names_of_images(connection: Connection, request_hashes: Sequence[str]) -> dict[str, set[str]]:
    """Of the requests that have an image, the catalogues that they have one in."""
    found: dict[str, set[str]] = {}
    for start in range(0, len(request_hashes), _IDS_A_QUERY):
        query = sa.select(_items.c.request_hash, _items.c.catalogue).where(
            _items.c.request_hash.in_(request_hashes[start : start + _IDS_A_QUERY]), _items.c.state == ItemState.DONE
        )
        for row in connection.execute(query):
            found.setdefault(row.request_hash, set()).add(row.catalogue)
    return found


def _statement(item: Row[Any], attempts: list[Row[Any]]) -> ItemStatement:
    return ItemStatement(
        item=item,
        attempt=_speaks_for(item, attempts),
        prompt_tokens=_sum(attempt.prompt_tokens for attempt in attempts),
        completion_tokens=_sum(attempt.completion_tokens for attempt in attempts),
        total_tokens=_sum(attempt.total_tokens for attempt in attempts),
        cost_micros=sum(attempt.cost_micros for attempt in attempts),
        at_risk_micros=sum(attempt.at_risk_micros for attempt in attempts),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """Their sum; None when there is nothing to add up."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _speaks_for(item: Row[Any], attempts: list[Row[Any]]) -> Row[Any] | None:
    """A done item is spoken for by its latest image of the current request, an open one by its open attempt."""
    if not attempts:
        return None
    if item.state in {ItemState.OPEN, ItemState.UNKNOWN, ItemState.OVERDUE}:
        return attempts[-1]
    same = [attempt for attempt in attempts if attempt.request_hash == item.request_hash]
    if item.state == ItemState.DONE:
        stored = [attempt for attempt in same if attempt.state == AttemptState.STORED]
        return stored[-1] if stored else None
    return same[-1] if same else None
