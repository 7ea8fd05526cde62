"""What a person should hear of without looking: conditions on the ledger, and what of them was told already.

A condition that holds is an `Alert`; its key names the crossing, so that each is told once, and again only after it has
ceased. Where alerts go is in `alert_sinks`; what is told is remembered in the ledger, so that a sensor, a cron job and
another Dagster tell nothing twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Protocol

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.leases import identity_of
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.states import AttemptState, Holding
from nanobanana_pipeline.ledger.work import is_open_attempt
from nanobanana_pipeline.model_specs.kinds import PUT_OFF, ErrorKind
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.model_specs.pricing import reservation
from nanobanana_pipeline.reporting.costs import shown
from nanobanana_pipeline.reporting.story import count, duration
from nanobanana_pipeline.settings import Settings

CAP_SHARES: Final = (50, 80, 100)
"""Percentages of a cap that are told of."""
_REARM: Final = 10
"""A share that was told of counts as ceased only this many points below it: reservations come and go."""
_FULL: Final = 99
"""From here on a cap is reached, as it is when not even the cheapest image fits: the last seldom fits to the cent."""
_WINDOW_S: Final = 3600
_ENOUGH: Final = 20
"""Attempts that must have ended within the window before their error rate says anything."""
_MAGNITUDES: Final = (1, 10, 100, 1_000, 10_000, 100_000)
_MEMORY: Final = "alerts"

_attempts = schema.attempts


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that holds: `key` names the crossing, `text` says in a sentence or two what is so and what to do."""

    key: str
    text: str
    urgent: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"key": self.key, "urgent": self.urgent, "text": self.text, **self.figures}


class Sink(Protocol):
    """Where alerts go."""

    name: str
    """Names it in the memory of what was told, so that of two sinks one may fail."""

    def send(self, alerts: Sequence[Alert], source: str) -> None:
        """Tell of these, which come from `source`. Raises `SinkError`."""
        ...


class SinkError(Exception):
    """An alert could not be told; says where to and why, without addresses that are secret."""


@dataclass(slots=True)
class Told:
    """What one look at the ledger led to: everything that holds, what was new to some sink, and which sinks failed."""

    holding: list[Alert]
    told: list[Alert] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def tell(ledger: Ledger, settings: Settings, sinks: Iterable[Sink]) -> Told:
    """Look at the ledger, and tell each sink of what holds and was not told there yet.

    A sink that fails is told again the next time. Two that look at the same moment may both tell.
    """
    memory = _remembered(ledger)
    known = frozenset(key for keys in memory.values() for key in keys)
    result = Told(conditions(ledger, settings, known))
    keys = {alert.key for alert in result.holding}
    # Others, a daemon's log or another's webhook, are asked elsewhere: what they were told stays so.
    after = {name: sorted(keys & set(told)) for name, told in memory.items()}
    source = _source(ledger, settings)
    for sink in sinks:
        before = set(memory.get(sink.name, ()))
        news = _worst([alert for alert in result.holding if alert.key not in before])
        problems = send([sink], news, source)
        result.problems += problems
        result.told += [alert for alert in news if alert not in result.told]
        after[sink.name] = sorted(keys & before if problems else keys)
    if after != memory:
        _remember(ledger, after)
    return result


def send(sinks: Iterable[Sink], alerts: Sequence[Alert], source: str) -> list[str]:
    """Tell these sinks; returns what went wrong."""
    problems: list[str] = []
    for sink in sinks if alerts else ():
        try:
            sink.send(alerts, source)
        except SinkError as error:
            problems.append(str(error))
    return problems


def conditions(ledger: Ledger, settings: Settings, known: frozenset[str] = frozenset()) -> list[Alert]:
    """Everything that holds now; `known` are the keys of what was told, which cease a little later than they began."""
    with ledger.database.read() as connection:
        now = ledger.database.now(connection)
        counters = {row.scope: Holding(row.reserved, row.spent, row.at_risk) for row in _budget(connection)}
        runs = _runs_since(connection, now) if settings.budget_run_usd is not None else []
        ended = _ended_since(connection, now)
        held = _open_attempts(connection, now, settings.task_deadline_s)
    today = datetime.fromtimestamp(now / 1000, UTC).date()
    spec = load_spec(settings.model, settings.prices)
    least = min(reservation(spec, 1, 0, resolution, today) for resolution in spec.resolutions)
    caps = {f"day:{today}": settings.budget_usd}
    if settings.budget_catalogue_usd is not None:
        names = [scope for scope in counters if scope.startswith("catalogue:")]
        caps |= dict.fromkeys(names, settings.budget_catalogue_usd)
    if settings.budget_run_usd is not None:
        caps |= {f"run:{run}": settings.budget_run_usd for run in runs}
    return [
        *(
            alert
            for scope, cap in caps.items()
            for alert in _of_cap(scope, cap, counters.get(scope, Holding()), least, known)
        ),
        *_of_errors(ended, settings.alert_error_rate),
        *_of_account(ended),
        *_of_open(held, settings.task_deadline_s),
    ]


def _worst(alerts: Sequence[Alert]) -> list[Alert]:
    """Of several crossings of one condition the last, which says it all."""
    return list({alert.key.rpartition("/")[0]: alert for alert in alerts}.values())


# --- conditions ------------------------------------------------------------------------------------------------------


def _of_cap(scope: str, cap: Decimal, held: Holding, least: int, known: frozenset[str]) -> list[Alert]:
    micros = int(cap.scaleb(6))
    kind, _, name = scope.partition(":")
    variable = {"day": "NANOBANANA_BUDGET_USD", "catalogue": "NANOBANANA_BUDGET_CATALOGUE_USD"}
    percent = 100 * sum(held) / micros if micros else 100.0
    text = (
        f"The cap of {shown(micros)} on {kind} {name} is used to {percent:.0f} %: {shown(held.spent)} spent, "
        f"{shown(held.reserved)} reserved, {shown(held.at_risk)} at risk. What doesn't fit is deferred; "
        f"{variable.get(kind, 'NANOBANANA_BUDGET_RUN_USD')} raises it."
    )
    alerts: list[Alert] = []
    for share in CAP_SHARES:
        key = f"cap/{scope}/{share}"
        reached = share == CAP_SHARES[-1]
        begins = (_FULL if reached else share) - (_REARM if key in known else 0)
        if percent >= begins or (reached and sum(held) + least > micros):
            alerts.append(Alert(key, text, reached, {"scope": scope, "percent": round(percent, 1)}))
    return alerts


def _of_errors(ended: Mapping[tuple[AttemptState, str | None], int], most: float) -> list[Alert]:
    good = sum(number for (state, _), number in ended.items() if state is AttemptState.STORED)
    kinds = {
        (kind or "no kind noted"): number
        for (state, kind), number in ended.items()
        if state in {AttemptState.FAILED, AttemptState.UNUSABLE, AttemptState.REFUSED} and kind not in PUT_OFF
    }
    bad = sum(kinds.values())
    if good + bad < _ENOUGH or bad <= most * (good + bad):
        return []
    why = ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items(), key=lambda entry: -entry[1]))
    text = (
        f"{bad:,} of the {good + bad:,} attempts that ended within the last hour gave no image ({why}); more than "
        f"{most:.0%} is told of (NANOBANANA_ALERT_ERROR_RATE). See nanobanana explain {datetime.now(UTC):%Y-%m-%d}."
    )
    return [Alert("errors/high", text, figures={"failed": bad, "ended": good + bad})]


_ACCOUNT: Final = (ErrorKind.AUTH, ErrorKind.BALANCE)


def _of_account(ended: Mapping[tuple[AttemptState, str | None], int]) -> list[Alert]:
    said = {
        ErrorKind.AUTH: "The provider refuses the key: check NANOBANANA_API_KEY.",
        ErrorKind.BALANCE: "The provider's account is empty: top it up.",
    }
    kinds = {kind for (state, kind) in ended if state is AttemptState.REFUSED}
    return [
        Alert(f"account/{kind}", f"{text} Runs stop at once, and nothing is charged for that.", urgent=True)
        for kind, text in said.items()
        if kind in kinds
    ]


def _of_open(held: Mapping[str, tuple[int, int]], deadline_s: int) -> list[Alert]:
    after = duration(deadline_s * 1000)
    told = {
        "unknown": (
            "of unknown outcome: sent, and never answered. They may have been billed, and are not sent again by "
            "themselves: nanobanana unknown list"
        ),
        "overdue": f"with a task that has not ended after {after}. Each run asks once more: nanobanana unknown list",
        "stale": f"open for more than {after}, and no worker is at work on them. The next run goes on: nanobanana run",
    }
    alerts: list[Alert] = []
    for name, what in told.items():
        number, micros = held.get(name, (0, 0))
        text = f"{count(number, 'attempt')} {'is' if number == 1 else 'are'} {what}. {shown(micros)} is held for them."
        figures = {"attempts": number, "held_micros": micros}
        alerts += [Alert(f"{name}/{size}", text, figures=figures) for size in _MAGNITUDES if number >= size]
    return alerts


# --- what the ledger says --------------------------------------------------------------------------------------------


def _budget(connection: Connection) -> Sequence[sa.Row[Any]]:
    return connection.execute(sa.select(schema.budget)).all()


def _since(now: int) -> sa.ColumnElement[bool]:
    # An attempt's id begins with its time: a range of the primary key, however many attempts there are.
    return _attempts.c.attempt_id >= f"{now - _WINDOW_S * 1000:012x}"


def _runs_since(connection: Connection, now: int) -> list[str]:
    return list(connection.execute(sa.select(_attempts.c.run_scope).where(_since(now)).distinct()).scalars())


def _ended_since(connection: Connection, now: int) -> dict[tuple[AttemptState, str | None], int]:
    """Attempts of the window by state and kind of error."""
    columns = (_attempts.c.state, _attempts.c.error_kind)
    query = sa.select(*columns, sa.func.count()).where(_since(now)).group_by(*columns)
    return {(AttemptState(state), kind): number for state, kind, number in connection.execute(query)}


def _open_attempts(connection: Connection, now: int, deadline_s: int) -> dict[str, tuple[int, int]]:
    """Attempts that wait for a person or a run, and the micro-dollars that they hold: unknown, overdue, stale."""
    alive = [
        row.owner
        for row in connection.execute(sa.select(schema.leases).where(schema.leases.c.expires_at > now))
        if not identity_of(row).known_dead()
    ]
    is_stale = sa.and_(_attempts.c.created_at < now - deadline_s * 1000, _attempts.c.owner.not_in(alive))
    waiting = (AttemptState.UNKNOWN.value, AttemptState.OVERDUE.value)
    name = sa.case(
        (_attempts.c.state.in_(waiting), _attempts.c.state), (is_stale, sa.literal("stale")), else_=sa.literal("")
    ).label("name")
    query = (
        sa.select(name, sa.func.count(), sa.func.sum(_attempts.c.reserved_micros))
        .where(is_open_attempt())
        .group_by(sa.text("name"))
    )
    return {found: (number, int(micros)) for found, number, micros in connection.execute(query)}


# --- what was told ---------------------------------------------------------------------------------------------------


def _source(ledger: Ledger, settings: Settings) -> str:
    stamp = ledger.stamp
    return f"{settings.workspace} ({'nothing run yet' if stamp is None else stamp.mode})"


def _remembered(ledger: Ledger) -> dict[str, list[str]]:
    with ledger.database.read() as connection:
        query = sa.select(schema.meta.c.value).where(schema.meta.c.key == _MEMORY)
        text = connection.execute(query).scalar_one_or_none()
    return orjson.loads(text) if text else {}


def _remember(ledger: Ledger, memory: Mapping[str, Sequence[str]]) -> None:
    insert = ledger.database.upsert(schema.meta).values(key=_MEMORY, value=orjson.dumps(memory).decode())
    with ledger.database.write() as connection:
        connection.execute(insert.on_conflict_do_update(index_elements=["key"], set_={"value": insert.excluded.value}))
