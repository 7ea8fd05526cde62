"""Entering what another copy of this book had entered, as the tables show it: after a ledger was lost, or set back.

Tables do not hold everything: requests that were edited since, the way a run began, and result URLs are missing. What
depends on money is there, and what is assumed for the rest never makes a request that was not asked for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import ITEM_STATE_OF, OPEN_STATES, AttemptState, ItemState

_items = schema.items
_attempts = schema.attempts
_shards = schema.shards
_catalogues = schema.catalogues
_requests = schema.requests

_IDS_A_QUERY = 500


@dataclass(frozen=True, slots=True)
class ShownItem:
    """An item as the tables show it; the mappings hold columns of the ledger's tables of the same names.

    `state` is the item's as last shown, `requests` are its own and those of its attempts, and `attempts` those that the
    ledger lacks, or has in an earlier state.
    """

    item: dict[str, Any]
    state: ItemState
    requests: list[dict[str, Any]]
    attempts: list[dict[str, Any]]


@dataclass(slots=True)
class Adopted:
    """What was entered; money in micro-dollars."""

    items: int = 0
    attempts: int = 0
    spent_micros: int = 0
    at_risk_micros: int = 0
    shards: set[str] = field(default_factory=set)

    def add(self, other: "Adopted") -> None:
        """Count what else was entered."""
        self.items += other.items
        self.attempts += other.attempts
        self.spent_micros += other.spent_micros
        self.at_risk_micros += other.at_risk_micros
        self.shards |= other.shards


def adopt(database: Database, postings: Postings, shard: str, shown: Sequence[ShownItem]) -> Adopted:
    """Enter a shard's items that the ledger does not know, and the attempts given; what that was."""
    adopted = Adopted()
    known = _known(postings, [entry.item["item_id"] for entry in shown])
    new = [entry for entry in shown if entry.item["item_id"] not in known]
    if not new and not any(entry.attempts for entry in shown):
        return adopted
    adopted.shards.add(shard)
    _enter_requests(database, postings, shown)
    if new:
        _enter_items(database, postings, shard, new)
        adopted.items += len(new)
    for entry in shown:
        row = known.get(entry.item["item_id"])
        # An item keeps the place that it has in the ledger.
        place = shard if row is None else row.shard
        for attempt in entry.attempts:
            postings.adopt({**attempt, "shard": place})
            adopted.attempts += 1
            adopted.spent_micros += attempt["cost_micros"]
            adopted.at_risk_micros += attempt["at_risk_micros"]
        if entry.attempts:
            adopted.shards.add(place)
            _set_item(postings, entry, entry.item["request_hash"] if row is None else row.request_hash)
    return adopted


def _known(postings: Postings, item_ids: Sequence[str]) -> dict[str, Row[Any]]:
    columns = (_items.c.item_id, _items.c.shard, _items.c.request_hash)
    rows: list[Row[Any]] = []
    for start in range(0, len(item_ids), _IDS_A_QUERY):
        query = sa.select(*columns).where(_items.c.item_id.in_(item_ids[start : start + _IDS_A_QUERY]))
        rows += postings.execute(query).all()
    return {row.item_id: row for row in rows}


def _enter_requests(database: Database, postings: Postings, shown: Iterable[ShownItem]) -> None:
    requests = [request for entry in shown for request in entry.requests]
    postings.execute(database.upsert(_requests).on_conflict_do_nothing(), requests)


def _enter_items(database: Database, postings: Postings, shard: str, new: Sequence[ShownItem]) -> None:
    catalogue: str = new[0].item["catalogue"]
    # Without a fingerprint, so that the next run reads its files, which the tables may be behind.
    insert = database.upsert(_catalogues).values(catalogue=catalogue, next_position=0)
    postings.execute(insert.on_conflict_do_update(index_elements=["catalogue"], set_={"fingerprint": None}))
    position = sa.select(_catalogues.c.next_position).where(_catalogues.c.catalogue == catalogue)
    first: int = postings.execute(position).scalar_one()
    rows = [
        {**entry.item, "position": first + number, "state": _waiting(entry.state), "attempts": 0}
        for number, entry in enumerate(new)
    ]
    postings.execute(_items.insert(), rows)
    taken = {"next_position": first + len(new)}
    postings.execute(_catalogues.update().where(_catalogues.c.catalogue == catalogue).values(taken))
    prompts = len({entry.item["prompt_id"] for entry in new})
    place = {"shard": shard, "catalogue": catalogue, "number": int(shard.rpartition("-")[2]), "prompts": prompts}
    place_in = database.upsert(_shards).values(place)
    added = {"prompts": _shards.c.prompts + prompts}
    postings.execute(place_in.on_conflict_do_update(index_elements=["shard"], set_=added))


def _set_item(postings: Postings, entry: ShownItem, request_hash: str) -> None:
    columns = (_attempts.c.attempt_id, _attempts.c.attempt, _attempts.c.state, _attempts.c.request_hash)
    mine = _attempts.c.item_id == entry.item["item_id"]
    attempts = postings.execute(sa.select(*columns).where(mine).order_by(_attempts.c.attempt)).all()
    last = attempts[-1]
    facts = {
        "state": _state(attempts, request_hash, entry.state),
        "attempts": last.attempt,
        "last_attempt_id": last.attempt_id,
    }
    postings.execute(_items.update().where(_items.c.item_id == entry.item["item_id"]).values(facts))


def _state(attempts: Sequence[Row[Any]], request_hash: str, shown: ItemState) -> ItemState:
    """Where an item with these attempts stands. What only failed waits for a person, unless it was shown to wait."""
    open_ = [attempt for attempt in attempts if attempt.state in OPEN_STATES]
    if open_:
        return ITEM_STATE_OF[AttemptState(open_[-1].state)]
    same = [attempt for attempt in attempts if attempt.request_hash == request_hash]
    if not same:
        return ItemState.PENDING
    if any(attempt.state == AttemptState.STORED for attempt in same):
        return ItemState.DONE
    return shown if shown is _waiting(shown) else ItemState.FAILED


def _waiting(shown: ItemState) -> ItemState:
    """How an item without attempts waits."""
    return ItemState.DEFERRED if shown is ItemState.DEFERRED else ItemState.PENDING
