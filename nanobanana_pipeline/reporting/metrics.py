"""The ledger's figures as Prometheus reads them: asked at each scrape, from indexes and from today's attempts alone.

What counts since midnight (UTC) begins again each day, as a counter does after a restart. Serving is the command's.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from sqlalchemy.engine import Connection

from nanobanana_pipeline.generation.standing import Standing, standing
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.states import OPEN_STATES, AttemptState
from nanobanana_pipeline.ledger.work import is_open_attempt
from nanobanana_pipeline.settings import Settings

_attempts = schema.attempts

LATENCY_BUCKETS_S: Final = (1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 900)
_CLOSED: Final = [state.value for state in AttemptState if state not in OPEN_STATES]
_USD: Final = 1_000_000


def registry_of(ledger: Ledger, settings: Settings) -> CollectorRegistry:
    """A registry that asks the ledger at each scrape."""
    registry = CollectorRegistry()
    registry.register(_LedgerCollector(ledger, settings))
    return registry


class _LedgerCollector(Collector):
    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not ask the ledger."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All the figures, within a second or two even on a large ledger."""
        began = time.monotonic()
        now = standing(self._ledger, self._settings)
        yield from _of_work(now)
        yield from _of_money(now)
        with self._ledger.database.read() as connection:
            moment = self._ledger.database.now(connection)
            today = datetime.fromtimestamp(moment / 1000, UTC).date().isoformat()
            yield _open(connection)
            yield from _throttle(connection, moment)
            yield from _today(connection, today)
            yield _latency(connection, today)
        took = GaugeMetricFamily("nanobanana_scrape_duration_seconds", "How long these figures took to gather.")
        took.add_metric([], time.monotonic() - began)
        yield took


def _of_work(now: Standing) -> Iterator[Metric]:
    mode = GaugeMetricFamily("nanobanana_ledger", "1; whose work the ledger holds.", labels=("mode", "origin"))
    if now.stamp is not None:
        mode.add_metric([now.stamp.mode, now.stamp.origin], 1)
    items = GaugeMetricFamily("nanobanana_items", "Items by status.", labels=("catalogue", "status"))
    shards = GaugeMetricFamily("nanobanana_shards_with_work", "Shards with work left.", labels=("catalogue",))
    for catalogue in now.catalogues:
        shards.add_metric([catalogue.name], catalogue.shards_with_work)
        for status, count in catalogue.items.items():
            items.add_metric([catalogue.name, status], count)
    workers = GaugeMetricFamily("nanobanana_workers", "Workers that hold a lease.", labels=("alive",))
    for alive in (True, False):
        workers.add_metric([str(alive).lower()], sum(worker.dead is not alive for worker in now.workers))
    yield from (mode, items, shards, workers)


def _of_money(now: Standing) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "nanobanana_budget_usd", "Money by the scope of its cap and by account.", labels=("scope", "account")
    )
    caps = GaugeMetricFamily("nanobanana_budget_cap_usd", "The caps.", labels=("scope",))
    for cap in now.caps:
        # Not by date: a series for each day would be a new one every day.
        scope = "day" if cap.scope.startswith("day:") else cap.scope
        for account, micros in cap.held._asdict().items():
            held.add_metric([scope, account], micros / _USD)
        if cap.cap is not None:
            caps.add_metric([scope], cap.cap / _USD)
    risk = GaugeMetricFamily("nanobanana_at_risk_usd", "Money at risk in all: it may have been billed.")
    risk.add_metric([], now.held.at_risk / _USD)
    yield from (held, caps, risk)


def _open(connection: Connection) -> Metric:
    found = GaugeMetricFamily("nanobanana_attempts_open", "Open attempts by state.", labels=("state",))
    query = sa.select(_attempts.c.state, sa.func.count()).where(is_open_attempt()).group_by(_attempts.c.state)
    counts = {row[0]: row[1] for row in connection.execute(query)}
    for state in OPEN_STATES:
        found.add_metric([state.value], counts.get(state.value, 0))
    return found


def _throttle(connection: Connection, now: int) -> Iterator[Metric]:
    limit = GaugeMetricFamily("nanobanana_throttle_limit", "Open tasks that 429s allow.", labels=("account",))
    paused = GaugeMetricFamily(
        "nanobanana_throttle_paused_seconds", "How long yet nothing is sent, after a 429.", labels=("account",)
    )
    for row in connection.execute(sa.select(schema.throttle).where(schema.throttle.c.state != "")):
        state: dict[str, Any] = orjson.loads(row.state)
        limit.add_metric([row.account], state.get("limit", 0))
        paused.add_metric([row.account], max(0, state.get("paused_until", 0) - now) / 1000)
    yield from (limit, paused)


def _today(connection: Connection, today: str) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "nanobanana_attempts_ended", "Attempts of today that have ended.", labels=("state", "error_kind")
    )
    kind = sa.func.coalesce(_attempts.c.error_kind, "")
    query = (
        sa.select(_attempts.c.state, kind, sa.func.count())
        .where(_attempts.c.day == today, _attempts.c.state.in_(_CLOSED))
        .group_by(_attempts.c.state, kind)
    )
    for state, error_kind, count in connection.execute(query):
        ended.add_metric([state, error_kind], count)
    sums = sa.select(
        sa.func.coalesce(sa.func.sum(_attempts.c.submits), 0),
        sa.func.coalesce(sa.func.sum(_attempts.c.polls), 0),
        sa.func.coalesce(sa.func.sum(_attempts.c.total_tokens), 0),
        sa.func.coalesce(sa.func.sum(_attempts.c.cost_micros), 0),
    ).where(_attempts.c.day == today)
    submits, polls, tokens, micros = connection.execute(sums).one()
    yield ended
    for name, said, value in (
        ("submits", "Submits of today's attempts, refused ones included.", submits),
        ("polls", "Questions after today's tasks.", polls),
        ("tokens", "Tokens of today's attempts.", tokens),
        ("cost_usd", "Money spent on today's attempts.", float(micros) / _USD),
    ):
        counter = CounterMetricFamily(f"nanobanana_{name}", said)
        counter.add_metric([], float(value))
        yield counter


def _latency(connection: Connection, today: str) -> Metric:
    found = HistogramMetricFamily(
        "nanobanana_task_duration_seconds",
        "From a task's acceptance to its end, of today's tasks.",
        labels=("resolution",),
    )
    taken = _attempts.c.completed_at - _attempts.c.submitted_at
    up_to = [sa.func.count().filter(taken <= seconds * 1000) for seconds in LATENCY_BUCKETS_S]
    query = (
        sa.select(_attempts.c.resolution, sa.func.count(), sa.func.sum(taken), *up_to)
        .where(_attempts.c.day == today, taken >= 0)
        .group_by(_attempts.c.resolution)
    )
    rows: list[Any] = list(connection.execute(query))
    for resolution, count, total, *counts in rows:
        buckets = [(str(float(bound)), float(n)) for bound, n in zip(LATENCY_BUCKETS_S, counts, strict=True)]
        found.add_metric([resolution], [*buckets, ("+Inf", float(count))], float(total) / 1000)
    return found
