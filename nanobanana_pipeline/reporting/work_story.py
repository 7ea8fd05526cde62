"""The story of a run or of a day: what was tried, what came of it and when, what it cost, and what went wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection

from nanobanana_pipeline.ledger import budget, chronicle
from nanobanana_pipeline.ledger.chronicle import Extent, Work
from nanobanana_pipeline.ledger.entries import Cause
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline.reporting.costs import shown
from nanobanana_pipeline.reporting.story import Story, count, duration, error, moment

_CAUSES: Final = {
    Cause.NEW: "first attempts",
    Cause.RETRY: "retries after the provider failed",
    Cause.RETRY_FAILED: "retries of failed items that a person asked for",
    Cause.REGENERATE: "to make an image anew",
    Cause.RESUBMIT: "sent again after an unknown outcome",
}
_ENDS: Final = {
    AttemptState.STORED: "gave an image",
    AttemptState.UNUSABLE: "were paid for without a good image",
    AttemptState.FAILED: "failed at the provider",
    AttemptState.REFUSED: "were refused",
    AttemptState.UNKNOWN: "were never answered",
    AttemptState.OVERDUE: "never ended",
    AttemptState.ABANDONED: "were given up",
    AttemptState.SUBMITTING: "are being sent",
    AttemptState.SUBMITTED: "are with the provider",
    AttemptState.COMPLETED: "are being fetched",
}
_ITEM_IS: Final = {
    ItemState.FAILED: "failed",
    ItemState.UNKNOWN: "is of unknown outcome",
    ItemState.OVERDUE: "is overdue",
    ItemState.DEFERRED: "was put off",
}
_STEPS_MS: Final = tuple(minutes * 60_000 for minutes in (1, 5, 15, 60, 6 * 60, 24 * 60))
_MOST_STEPS: Final = 24
_LISTED: Final = 10


def tell_work(connection: Connection, work: Work, now: int) -> Story:
    """The story of a run's or a day's attempts; of a day without any, that there were none."""
    extent = chronicle.extent(connection, work)
    story = Story("run", work.run, f"Run {work.run}") if work.run else Story("day", work.day or "", f"{work.day} (UTC)")
    if not extent.attempts:
        story.say("No attempt was made.")
        story.figures = {"attempts": 0}
        return story
    states = chronicle.by(connection, work, "state")
    _say_extent(connection, story, work, extent)
    _say_states(story, states)
    _say_latencies(connection, story, work)
    _say_money(connection, story, work, states)
    _say_trouble(connection, story, work, extent)
    if work.day is not None:
        for run in chronicle.by(connection, work, "run_scope"):
            spent = shown(run["cost_micros"])
            story.say(
                f"Run {run['run_scope']}: {count(run['attempts'], 'attempt')} from {moment(run['first'])}, {spent}."
            )
    _tell_steps(connection, story, work, extent)
    if work.run is not None and any(chronicle.is_open(row["state"]) for row in states):
        story.tell("Some of it is still open.", at=now)
    return story


def _say_extent(connection: Connection, story: Story, work: Work, extent: Extent) -> None:
    shards = ", ".join(extent.shards[:_LISTED]) + (" …" if len(extent.shards) > _LISTED else "")
    story.say(
        f"{count(extent.attempts, 'attempt')} for {count(extent.items, 'item')} in "
        f"{count(len(extent.shards), 'shard')} ({shards}), from {moment(extent.first)} to {moment(extent.last)}: "
        f"{duration(extent.last - extent.first)}."
    )
    causes = {Cause(row["cause"]): row["attempts"] for row in chronicle.by(connection, work, "cause")}
    story.say("Of these " + ", ".join(f"{number:,} {_CAUSES[cause]}" for cause, number in causes.items()) + ".")
    story.figures |= {
        "attempts": extent.attempts,
        "items": extent.items,
        "shards": len(extent.shards),
        "causes": causes,
    }


def _say_states(story: Story, states: Sequence[Mapping[str, Any]]) -> None:
    ends = {AttemptState(row["state"]): row["attempts"] for row in states}
    story.say(", ".join(f"{number:,} {_ENDS[state]}" for state, number in ends.items()) + ".")
    refusals = sum(row["resubmits"] for row in states)
    if refusals:
        story.say(f"Besides, {count(refusals, 'submit')} came back refused, at no cost, before a later one was taken.")
    story.figures |= {"states": ends, "refused_submits": refusals}


def _say_latencies(connection: Connection, story: Story, work: Work) -> None:
    latencies = chronicle.latencies_ms(connection, work, (0.5, 0.95, 1.0))
    if latencies:
        median, most, slowest = map(duration, latencies)
        story.say(f"A task took {median} in the middle, 95 % of them up to {most}, the slowest {slowest}.")
    story.figures["latency_s"] = dict(zip(("median", "p95", "max"), (ms / 1000 for ms in latencies), strict=False))


def _say_money(connection: Connection, story: Story, work: Work, states: Sequence[Mapping[str, Any]]) -> None:
    spent = sum(row["cost_micros"] for row in states)
    at_risk = sum(row["at_risk_micros"] for row in states)
    in_flight = (AttemptState.SUBMITTING, AttemptState.SUBMITTED)
    reserved = sum(row["reserved_micros"] for row in states if row["state"] in in_flight)
    parts = [f"{shown(spent)} was spent"]
    parts += [f"{shown(at_risk)} is at risk"] if at_risk else []
    parts += [f"{shown(reserved)} is reserved"] if reserved else []
    prices = [
        f"{row['attempts']:,} by {row['cost_source']}" + (f" {row['price_version']}" if row["price_version"] else "")
        for row in chronicle.by(connection, work, "cost_source", "price_version")
        if row["cost_source"]
    ]
    story.say(", ".join(parts) + (f"; priced: {', '.join(prices)}." if prices else "."))
    money = {"cost": spent, "at_risk": at_risk, "reserved": reserved}
    story.figures |= {f"{name}_usd": budget.usd(micros) for name, micros in money.items()}


def _say_trouble(connection: Connection, story: Story, work: Work, extent: Extent) -> None:
    errors = [row for row in chronicle.by(connection, work, "error_kind", "error_code") if row["error_kind"]]
    for row in errors[:_LISTED]:
        story.say(
            f"{count(row['attempts'], 'attempt')} ended with {error(row['error_kind'], row['error_code'], None)}."
        )
    for row in chronicle.troubled(connection, work):
        name = f"{row.catalogue}/{row.prompt_id}#{row.sample}"
        why = row.note or error(row.error_kind, row.error_code, row.error_message)
        story.say(f"{name} {_ITEM_IS[ItemState(row.item_state)]}: {why}.")
    for note, number in chronicle.waiting(connection, extent.shards):
        story.say(f"Now {count(number, 'item')} of these shards wait: {note}.")
    story.figures["errors"] = [
        {"kind": row["error_kind"], "code": row["error_code"], "attempts": row["attempts"]} for row in errors
    ]


def _tell_steps(connection: Connection, story: Story, work: Work, extent: Extent) -> None:
    """What was begun when, in steps of a size that makes them few."""
    long = extent.last - extent.first
    step = next((step for step in _STEPS_MS if long <= step * _MOST_STEPS), _STEPS_MS[-1])
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in chronicle.by_time(connection, work, step):
        by_step.setdefault(row["since"], []).append(row)
    before: int | None = None
    for since, rows in by_step.items():
        if before is not None and since - before > step:
            story.tell(f"Nothing was begun for {duration(since - before - step)}.", at=before + step)
        ends: Counter[AttemptState] = Counter()
        for row in rows:
            ends[AttemptState(row["state"])] += row["attempts"]
        came = ", ".join(f"{number:,} {_ENDS[state]}" for state, number in ends.most_common())
        spent = sum(row["cost_micros"] for row in rows)
        begun = count(sum(ends.values()), "attempt")
        story.tell(f"In these {duration(step)}, {begun} begun: {came}; {shown(spent)}.", at=since)
        before = since
