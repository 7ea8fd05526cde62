"""What the cost report shows, as data for its page: money by day and by what it bought, failures, latencies, caps.

All of it is read from the ledger in one snapshot. The page adds up and draws; it is written by `pages`.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.engine import Connection

from nanobanana_pipeline.generation.publishing import STATUS_OF
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.states import Holding
from nanobanana_pipeline.reporting import figures
from nanobanana_pipeline.reporting.approval import Saved, saved_plans
from nanobanana_pipeline.reporting.figures import WASTE, Outcome

_CAMPAIGNS: Final = 200
"""Campaigns told apart on the page; the cheaper ones are summed up as one."""
_OTHERS: Final = "(all others)"
_PLANS: Final = 20
_DAY_MS: Final = 86_400_000
_FEW_DAYS: Final = 3
_STEPS_MS: Final = (1_000, 5_000, 15_000, 60_000, 300_000, 900_000, 3_600_000)
_MOST_STEPS: Final = 240

Json = dict[str, Any]


def cost_data(workspace: Workspace) -> Json:
    """Everything on the page; money in micro-dollars, times in milliseconds."""
    stamp = workspace.ledger.stamp
    settings = workspace.settings
    now = time.time_ns() // 1_000_000
    today = datetime.fromtimestamp(now / 1000, UTC).date().isoformat()
    counters = workspace.ledger.counters()
    plans = saved_plans(workspace)[-_PLANS:]
    with workspace.ledger.database.read() as connection:
        totals = figures.totals(connection)
        statuses: Counter[str] = Counter()
        for state, count in figures.items_by_state(connection).items():
            statuses[STATUS_OF[state]] += count
        return {
            "generated_at": now,
            "simulated": settings.simulated if stamp is None else stamp.mode == "simulated",
            "totals": dict(totals),
            "statuses": dict(statuses),
            "today": today,
            "caps": _caps(workspace, counters, today),
            "spending": _spending(figures.spending(connection)),
            "moments": _moments(connection),
            "deferred": [dict(row) for row in figures.deferred(connection)],
            "labels": _labels(figures.by_label(connection), figures.deferred_by_label(connection)),
            "failures": [dict(row) for row in figures.failed_attempts(connection)],
            "latencies": _latencies(connection),
            "plans": list(_plans(connection, plans)),
        }


def _caps(workspace: Workspace, counters: Mapping[str, Holding], today: str) -> list[Json]:
    """The caps that hold now, each with what stands against it."""
    settings = workspace.settings
    caps = [("day", f"Today ({today}, UTC)", f"day:{today}", settings.budget_usd)]
    if settings.budget_catalogue_usd is not None:
        names = sorted(scope.partition(":")[2] for scope in counters if scope.startswith("catalogue:"))
        caps += [("catalogue", name, f"catalogue:{name}", settings.budget_catalogue_usd) for name in names]
    return [
        {"kind": kind, "name": name, "cap": int(cap.scaleb(6)), **counters.get(scope, Holding())._asdict()}
        for kind, name, scope, cap in caps
    ]


class _Names:
    """Strings, each kept once; a row names one by its number."""

    def __init__(self) -> None:
        self.names: list[str | None] = []
        self._numbers: dict[str | None, int] = {}

    def __getitem__(self, name: str | None) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
        return number


_DIMENSIONS: Final = ("day", "catalogue", "campaign", "model", "resolution", "outcome")
_MEASURES: Final = ("attempts", "images", "tokens", "cost_micros", "at_risk_micros")


def _spending(rows: Iterable[Mapping[str, Any]]) -> Json:
    """Rows of numbers: where in each dimension, then the measures. Campaigns beyond the costliest are one."""
    listed = [dict(row) for row in rows]
    by_campaign: Counter[str | None] = Counter()
    for row in listed:
        by_campaign[row["campaign"]] += row["cost_micros"] + row["at_risk_micros"]
    costliest = {campaign for campaign, _ in by_campaign.most_common(_CAMPAIGNS)}
    names = {dimension: _Names() for dimension in _DIMENSIONS}
    sums: defaultdict[tuple[int, ...], list[int]] = defaultdict(lambda: [0] * len(_MEASURES))
    for row in listed:
        if row["campaign"] not in costliest:
            row["campaign"] = _OTHERS
        held = sums[tuple(names[dimension][row[dimension]] for dimension in _DIMENSIONS)]
        for i, measure in enumerate(_MEASURES):
            held[i] += row[measure]
    return {
        "dimensions": {dimension: kept.names for dimension, kept in names.items()},
        "measures": _MEASURES,
        "rows": [[*key, *held] for key, held in sums.items()],
    }


def _moments(connection: Connection) -> Json | None:
    """Spending in steps of minutes or hours, while all of it lies within a few days; None later, or before any."""
    span = figures.time_span(connection)
    if span is None or span[1] - span[0] > _FEW_DAYS * _DAY_MS:
        return None
    step = next((step for step in _STEPS_MS if (span[1] - span[0]) / step <= _MOST_STEPS), _STEPS_MS[-1])
    rows = figures.by_moment(connection, step)
    return {
        "step_ms": step,
        "rows": [[row["moment"], row["images"], row["cost_micros"], row["at_risk_micros"]] for row in rows],
    }


def _labels(rows: Iterable[Mapping[str, Any]], deferred: Mapping[tuple[str, str | None], int]) -> list[Json]:
    """By label: its values with their sums, the costliest first."""
    labels: dict[str, dict[str | None, Counter[str]]] = {}
    for row in rows:
        sums = labels.setdefault(row["name"], {}).setdefault(row["value"], Counter())
        for measure in _MEASURES:
            sums[measure] += row[measure]
        if row["outcome"] == Outcome.IN_USE:
            sums["in_use"] += row["images"]
        if row["outcome"] in WASTE:
            sums["wasted_micros"] += row["cost_micros"]
    return [
        {
            "name": name,
            "values": [
                {"value": value, **sums, "deferred": deferred.get((name, value), 0)} for value, sums in values.items()
            ],
        }
        for name, values in labels.items()
    ]


def _plans(connection: Connection, plans: Sequence[Saved]) -> Iterator[Json]:
    """Each saved plan, and what came of it until another was made for the same catalogues."""
    for i, one in enumerate(plans):
        following = (other.created_at for other in plans[i + 1 :] if set(other.catalogues) & set(one.catalogues))
        until = next(following, None)
        images, micros = figures.held_between(connection, one.catalogues, one.created_at, until)
        # A plan that nothing came of (made again, or dropped) was not right or wrong.
        if images or micros:
            yield {
                "hash": one.hash,
                "created_at": one.created_at,
                "to_make": one.to_make,
                "forecast": one.cost_micros,
                "images": images,
                "held_micros": micros,
            }


def _latencies(connection: Connection) -> Json:
    """By resolution: pairs of milliseconds and how many tasks took that long."""
    pairs: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for resolution, latency, count in figures.latencies(connection):
        pairs[resolution].append((latency, count))
    return {"step_ms": figures.LATENCY_STEP_MS, "by_resolution": pairs}
