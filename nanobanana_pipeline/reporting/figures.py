"""The sums that reports are made of, taken from the ledger by SQL: by day and campaign, by what the money bought.

Only reading and adding up; each function works inside the reader's transaction, so that all the figures of one report
are of one moment. Money is in integer micro-dollars. What becomes of the figures is in `costs` and `cost_page`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import IN_FLIGHT_STATES, OPEN_STATES, AttemptState, ItemState
from nanobanana_pipeline.model_specs.kinds import PUT_OFF, ErrorKind

_items = schema.items
_attempts = schema.attempts

LATENCY_STEP_MS: Final = 10
"""How finely latencies are told apart: fine enough for a percentile, coarse enough to count a million in few rows."""
LABEL_VALUES: Final = 50
"""The costliest values of a label that are listed; a label may have a value of its own on every row."""


class Outcome(StrEnum):
    """What an attempt's money bought."""

    IN_USE = "in_use"
    """The current image of an item of the catalogue."""
    REMOVED = "removed"
    """A good image of an item that is no longer in its catalogue."""
    SUPERSEDED = "superseded"
    """A good image whose item was edited or generated anew since."""
    UNUSABLE = "unusable"
    """The task completed, but no good image could be had from it."""
    FAILED = "failed"
    """The provider failed the task, or refused it."""
    DELIVERING = "delivering"
    """Completed and paid; its images are still to be fetched."""
    IN_FLIGHT = "in_flight"
    """Not ended yet."""
    AT_RISK = "at_risk"
    """Of unknown outcome, overdue or abandoned: it may have been billed."""


WASTE: Final = (Outcome.SUPERSEDED, Outcome.UNUSABLE, Outcome.FAILED)
"""Paid for, and of no use now."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which attempts and items a report is about; None is no restriction."""

    catalogue: str | None = None
    shard: str | None = None
    run_scope: str | None = None

    def of_attempts(self) -> list[sa.ColumnElement[bool]]:
        """The conditions on attempts."""
        wanted = {"catalogue": self.catalogue, "shard": self.shard, "run_scope": self.run_scope}
        return [_attempts.c[name] == value for name, value in wanted.items() if value is not None]

    def of_items(self) -> list[sa.ColumnElement[bool]]:
        """The conditions on items: those of a run are the items that it made attempts for."""
        wanted = {"catalogue": self.catalogue, "shard": self.shard}
        conditions = [_items.c[name] == value for name, value in wanted.items() if value is not None]
        if self.run_scope is not None:
            of_run = sa.select(_attempts.c.item_id).where(_attempts.c.run_scope == self.run_scope)
            conditions.append(_items.c.item_id.in_(of_run))
        return conditions


EVERYTHING: Final = Scope()


def image_count(connection: Connection) -> sa.ColumnElement[int]:
    """The image files of an attempt."""
    listed = _attempts.c.images
    if connection.dialect.name == "postgresql":
        return sa.func.coalesce(sa.func.json_array_length(sa.cast(listed, sa.JSON)), 0)
    return sa.func.coalesce(sa.func.json_array_length(listed), 0)


def daily(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """The figures of `cost_daily`: by day, catalogue, campaign, model and resolution, in that order.

    An item counts once in a group, however many attempts of it are there, so it is summed up in two steps. An item that
    was edited to another resolution on one day counts in both groups, since it was paid for in both.
    """
    groups = [_attempts.c[name] for name in ("day", "catalogue", "campaign", "model", "resolution")]
    state = _attempts.c.state
    put_off = sa.and_(
        state == AttemptState.REFUSED,
        sa.func.coalesce(_attempts.c.error_kind, "").in_([kind.value for kind in PUT_OFF]),
    )
    is_open = state.in_([open_state.value for open_state in OPEN_STATES])
    of_item = (
        sa.select(
            *groups,
            sa.func.max(_flag(state == AttemptState.STORED)).label("stored"),
            sa.func.max(_flag(is_open)).label("open"),
            sa.func.max(_flag(sa.and_(state != AttemptState.STORED, ~is_open, ~put_off))).label("lost"),
            sa.func.sum(image_count(connection)).label("images"),
            sa.func.sum(sa.func.coalesce(_attempts.c.total_tokens, 0)).label("tokens"),
            sa.func.sum(_attempts.c.cost_micros).label("cost_micros"),
            sa.func.sum(_attempts.c.at_risk_micros).label("at_risk_micros"),
        )
        .group_by(*groups, _attempts.c.item_id)
        .subquery()
    )
    keys = [of_item.c[group.name] for group in groups]
    failed = sa.and_(of_item.c.stored == 0, of_item.c.open == 0, of_item.c.lost == 1)
    query = (
        sa.select(
            *keys,
            sa.func.count().label("items"),
            sa.func.sum(of_item.c.stored).label("succeeded"),
            sa.func.sum(_flag(failed)).label("failed"),
            *(
                sa.func.sum(of_item.c[name]).label(name)
                for name in ("images", "tokens", "cost_micros", "at_risk_micros")
            ),
        )
        .group_by(*keys)
        .order_by(*keys)
    )
    yield from _rows(connection, query)


def spending(connection: Connection, scope: Scope = EVERYTHING) -> Iterator[Mapping[str, Any]]:
    """Attempts, images, tokens and money by day, catalogue, campaign, model, resolution and outcome."""
    outcome = _outcome().label("outcome")
    groups = [*(_attempts.c[name] for name in ("day", "catalogue", "campaign", "model", "resolution")), outcome]
    query = _with_items(sa.select(*groups, *_sums(connection))).where(*scope.of_attempts()).group_by(*groups)
    yield from _rows(connection, query)


def by_label(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """Attempts, images and money by label (`name`, `value`) of the item as it is now, the costliest values of each."""
    labels = _labels(connection)
    # By name in GROUP BY as well: written out twice, their bound parameters would be different ones to PostgreSQL.
    groups = [
        labels.c.key.label("name"),
        _label_value(connection, labels).label("value"),
        _outcome().label("outcome"),
    ]
    sums = (
        sa.select(*groups, *_sums(connection))
        .select_from(_attempts.join(_items, _items.c.item_id == _attempts.c.item_id).join(labels, sa.true()))
        .where(_items.c.labels.is_not(None))
        .group_by(*groups)
        .subquery()
    )
    # The same label by its total over all outcomes, to say which values are the costliest.
    total = sa.func.sum(sums.c.cost_micros + sums.c.at_risk_micros).over(partition_by=[sums.c.name, sums.c.value])
    with_total = sa.select(*sums.c, total.label("total")).subquery()
    rank = sa.func.dense_rank().over(
        partition_by=with_total.c.name, order_by=[with_total.c.total.desc(), with_total.c.value]
    )
    ranked = sa.select(*with_total.c, rank.label("rank")).subquery()
    query = sa.select(*ranked.c).where(ranked.c.rank <= LABEL_VALUES).order_by(ranked.c.name, ranked.c.rank)
    yield from _rows(connection, query)


def deferred(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """Items of the catalogues that were put off, by catalogue, campaign, model and resolution."""
    requests = schema.requests
    groups = [_items.c.catalogue, _items.c.campaign, requests.c.model, requests.c.resolution]
    query = (
        sa.select(*groups, sa.func.count().label("items"))
        .select_from(_items.join(requests, requests.c.request_hash == _items.c.request_hash))
        .where(*_PUT_OFF_NOW)
        .group_by(*groups)
    )
    yield from _rows(connection, query)


def deferred_by_label(connection: Connection) -> dict[tuple[str, str | None], int]:
    """How many items of the catalogues were put off, by label and value."""
    labels = _labels(connection)
    groups = [labels.c.key.label("name"), _label_value(connection, labels).label("value")]
    query = (
        sa.select(*groups, sa.func.count().label("items"))
        .select_from(_items.join(labels, sa.true()))
        .where(_items.c.labels.is_not(None), *_PUT_OFF_NOW)
        .group_by(*groups)
    )
    return {(row["name"], row["value"]): row["items"] for row in _rows(connection, query)}


def by_moment(connection: Connection, step_ms: int) -> Iterator[Mapping[str, Any]]:
    """Images and money by the time of reservation, in steps of `step_ms` (`moment` is the step's beginning)."""
    moment = (_attempts.c.created_at - _attempts.c.created_at % step_ms).label("moment")
    query = sa.select(moment, *_sums(connection)).group_by(moment).order_by(moment)
    yield from _rows(connection, query)


def time_span(connection: Connection) -> tuple[int, int] | None:
    """The first and the last reservation, in milliseconds; None without attempts."""
    query = sa.select(sa.func.min(_attempts.c.created_at), sa.func.max(_attempts.c.created_at))
    first, last = connection.execute(query).one()
    return None if first is None else (first, last)


def totals(connection: Connection, scope: Scope = EVERYTHING) -> Mapping[str, Any]:
    """Attempts, images, tokens and money of all the attempts in scope, and what open ones have reserved.

    `submitted` are the attempts that the provider accepted.
    """
    in_flight = _attempts.c.state.in_([state.value for state in IN_FLIGHT_STATES])
    reserved = sa.func.sum(sa.case((in_flight, _attempts.c.reserved_micros), else_=0))
    tokens = [
        sa.func.sum(sa.func.coalesce(_attempts.c[name], 0)).label(name)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    ]
    submitted = sa.func.count(_attempts.c.submitted_at).label("submitted")
    query = sa.select(*_sums(connection), submitted, reserved.label("reserved_micros"), *tokens)
    query = query.where(*scope.of_attempts())
    row = connection.execute(query).mappings().one()
    return {name: int(value or 0) for name, value in row.items()}


def held_between(
    connection: Connection, catalogues: Sequence[str], first: int, last: int | None = None
) -> tuple[int, int]:
    """Images, and money spent, reserved or at risk, of attempts in catalogues from `first` to before `last` (ms)."""
    in_flight = _attempts.c.state.in_([state.value for state in IN_FLIGHT_STATES])
    settled = _attempts.c.cost_micros + _attempts.c.at_risk_micros
    held = sa.func.sum(sa.case((in_flight, _attempts.c.reserved_micros), else_=settled))
    query = sa.select(sa.func.sum(image_count(connection)), held).where(
        _attempts.c.created_at >= first, _attempts.c.catalogue.in_(catalogues)
    )
    if last is not None:
        query = query.where(_attempts.c.created_at < last)
    images, micros = connection.execute(query).one()
    return int(images or 0), int(micros or 0)


def items_by_state(connection: Connection, scope: Scope = EVERYTHING) -> dict[ItemState, int]:
    """Items of the catalogue by state; removed ones count only while an attempt of theirs is open."""
    still_open = [ItemState.OPEN.value, ItemState.UNKNOWN.value, ItemState.OVERDUE.value]
    query = (
        sa.select(_items.c.state, sa.func.count())
        .where(sa.or_(_items.c.active, _items.c.state.in_(still_open)), *scope.of_items())
        .group_by(_items.c.state)
    )
    return {ItemState(state): count for state, count in connection.execute(query)}


def failures(connection: Connection, scope: Scope = EVERYTHING) -> dict[str, int]:
    """Items that have no image for good, by the kind of error that their last attempt ended with."""
    kind = sa.func.coalesce(_attempts.c.error_kind, ErrorKind.UNKNOWN_OUTCOME.value).label("kind")
    query = (
        sa.select(kind, sa.func.count().label("items"))
        .select_from(_items.join(_attempts, _attempts.c.attempt_id == _items.c.last_attempt_id))
        .where(_items.c.active, _items.c.state == ItemState.FAILED, *scope.of_items())
        .group_by(sa.text("kind"))
    )
    return {row.kind: row.items for row in connection.execute(query)}


def failed_attempts(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """Attempts that ended without an image, by kind and code of error, with one message as an example."""
    ended_badly = [AttemptState.FAILED, AttemptState.UNUSABLE, AttemptState.REFUSED, AttemptState.ABANDONED]
    without_image = [state.value for state in (*ended_badly, AttemptState.UNKNOWN, AttemptState.OVERDUE)]
    query = (
        sa.select(
            sa.func.coalesce(_attempts.c.error_kind, ErrorKind.UNKNOWN_OUTCOME.value).label("kind"),
            _attempts.c.error_code.label("code"),
            sa.func.min(_attempts.c.error_message).label("message"),
            sa.func.count(sa.distinct(_attempts.c.item_id)).label("items"),
            *_sums(connection),
        )
        .where(_attempts.c.state.in_(without_image))
        .group_by(sa.text("kind"), _attempts.c.error_code)
        .order_by(sa.func.count().desc(), sa.text("kind"))
    )
    yield from _rows(connection, query)


def latencies(connection: Connection) -> Iterator[tuple[str, int, int]]:
    """Resolution, latency in milliseconds (to `LATENCY_STEP_MS`), and how many tasks took that long."""
    taken = _attempts.c.completed_at - _attempts.c.submitted_at
    step = (taken - taken % LATENCY_STEP_MS).label("latency")
    query = (
        sa.select(_attempts.c.resolution, step, sa.func.count())
        .where(_attempts.c.state.in_([AttemptState.STORED.value, AttemptState.COMPLETED.value]), taken >= 0)
        .group_by(_attempts.c.resolution, step)
        .order_by(_attempts.c.resolution, step)
    )
    for resolution, latency, count in connection.execute(query):
        yield resolution, int(latency), int(count)


def is_current() -> sa.ColumnElement[bool]:
    """Whether an attempt made the current image of its item: the latest image of the request as it is now."""
    later = _attempts.alias("later")
    replaced = sa.select(later.c.attempt_id).where(
        later.c.item_id == _attempts.c.item_id,
        later.c.attempt > _attempts.c.attempt,
        later.c.request_hash == _items.c.request_hash,
        later.c.state == AttemptState.STORED.value,
    )
    return sa.and_(
        _attempts.c.state == AttemptState.STORED.value,
        _attempts.c.request_hash == _items.c.request_hash,
        _items.c.state == ItemState.DONE.value,
        ~replaced.exists(),
    )


def _outcome() -> sa.ColumnElement[str]:
    state = _attempts.c.state
    lost = [AttemptState.UNKNOWN.value, AttemptState.OVERDUE.value, AttemptState.ABANDONED.value]
    # Nested, so that the one question that needs a look at other rows is asked once, and of stored attempts alone.
    stored = sa.case(
        (~is_current(), _word(Outcome.SUPERSEDED)),
        (_items.c.active, _word(Outcome.IN_USE)),
        else_=_word(Outcome.REMOVED),
    )
    return sa.case(
        (state == AttemptState.STORED.value, stored),
        (state == AttemptState.UNUSABLE.value, _word(Outcome.UNUSABLE)),
        (state == AttemptState.COMPLETED.value, _word(Outcome.DELIVERING)),
        (state.in_(lost), _word(Outcome.AT_RISK)),
        (state.in_([in_flight.value for in_flight in IN_FLIGHT_STATES]), _word(Outcome.IN_FLIGHT)),
        else_=_word(Outcome.FAILED),
    )


def _word(outcome: Outcome) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{outcome}'")


def _with_items(query: sa.Select[Any]) -> sa.Select[Any]:
    return query.select_from(_attempts.join(_items, _items.c.item_id == _attempts.c.item_id))


def _sums(connection: Connection) -> list[sa.Label[Any]]:
    return [
        sa.func.count().label("attempts"),
        sa.func.sum(image_count(connection)).label("images"),
        sa.func.sum(sa.func.coalesce(_attempts.c.total_tokens, 0)).label("tokens"),
        sa.func.sum(_attempts.c.cost_micros).label("cost_micros"),
        sa.func.sum(_attempts.c.at_risk_micros).label("at_risk_micros"),
    ]


_PUT_OFF_NOW: Final = (_items.c.active, _items.c.state == ItemState.DEFERRED.value)


def _labels(connection: Connection) -> Any:
    """The labels of each item, as rows of `key` and `value`."""
    if connection.dialect.name == "postgresql":
        # The character NUL, which JSON has and no text of PostgreSQL's: one in a million labels, and no page at all.
        labels = sa.cast(sa.func.replace(_items.c.labels, "\\u0000", "\\ufffd"), sa.JSON)
        return sa.func.json_each_text(labels).table_valued("key", "value").lateral("label")
    return sa.func.json_each(_items.c.labels).table_valued("key", "value", "type", name="label")


def _label_value(connection: Connection, labels: Any) -> sa.ColumnElement[Any]:
    """A label's value as text. SQLite has 1 and 0 for true and false, whose type alone says so."""
    text = sa.cast(labels.c.value, sa.Text)
    if connection.dialect.name == "postgresql":
        return text
    truth = labels.c["type"]
    return sa.case((truth.in_(["true", "false"]), truth), else_=text)


def _flag(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.case((condition, 1), else_=0)


def _rows(connection: Connection, query: sa.Select[*tuple[Any, ...]]) -> Iterator[Mapping[str, Any]]:
    """Rows with whole numbers as int: PostgreSQL sums big integers to a decimal."""
    whole = frozenset(query.selected_columns.keys()) & _WHOLE
    for row in connection.execute(query.execution_options(yield_per=5000)).mappings():
        # Plain names: those of columns without a label are of a kind of string that JSON's encoder refuses as a key.
        yield {str(name): int(value) if name in whole else value for name, value in row.items()}


_WHOLE: Final = frozenset(
    {"attempts", "items", "succeeded", "failed", "images", "tokens", "cost_micros", "at_risk_micros", "moment"}
)
