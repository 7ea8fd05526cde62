"""An item's story: what it asks for, every attempt with its waits and its price, and why it stands where it stands."""

from collections.abc import Sequence
from typing import Any, Final

import orjson
from sqlalchemy.engine import Connection, Row

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.publishing import STATUS_OF
from nanobanana_pipeline.ledger import budget, chronicle
from nanobanana_pipeline.ledger.entries import Cause
from nanobanana_pipeline.ledger.leases import identity_of
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline.reporting.costs import shown
from nanobanana_pipeline.reporting.story import Story, count, duration, error, iso, quoted

_BECAUSE: Final = {
    Cause.NEW: "since this request had no image yet",
    Cause.RETRY: "since the provider failed the one before, which may be tried again",
    Cause.RETRY_FAILED: "since a person asked for failed items once more (retry_failed)",
    Cause.REGENERATE: "to make the image anew, though one was paid for (regenerate, or NANOBANANA_ON_UNUSABLE)",
    Cause.RESUBMIT: "since a person, or NANOBANANA_ON_UNKNOWN, said to send again what was never answered",
}
_PRICED_BY: Final = {"provider": "as the provider said", "invoice": "as the invoice said"}


def tell_item(connection: Connection, item_id: str, now: int) -> Story:
    """The story of an item that is in the ledger."""
    item = chronicle.item(connection, item_id)
    if item is None:
        raise AssertionError(f"item {item_id} was found, and is gone")
    attempts = chronicle.attempts_of(connection, item_id)
    story = Story("item", item_id, f"{item.catalogue}/{item.prompt_id}#{item.sample} (item {item_id})")
    request = Request.from_json(item.body)
    wanted = ", ".join(filter(None, (item.model, item.resolution, request.aspect_ratio)))
    pictures = f", from {count(len(request.image_urls), 'image')}" if request.image_urls else ""
    story.say(f"It asks for {quoted(request.prompt)} ({wanted}{pictures}); shard {item.shard}.")
    story.say(_standing(item, attempts))
    spent, at_risk = sum(a.cost_micros for a in attempts), sum(a.at_risk_micros for a in attempts)
    if attempts:
        risk = f", and {shown(at_risk)} is at risk: it may have been billed" if at_risk else ""
        story.say(f"{count(len(attempts), 'attempt')} cost {shown(spent)} in all{risk}.")
    before: Row[Any] | None = None
    for attempt in attempts:
        _tell_attempt(story, attempt, before, item, now)
        before = attempt
    if before is not None and chronicle.is_open(before.state):
        story.tell(_holder(connection, before), attempt_id=before.attempt_id)
    story.figures = {
        "catalogue": item.catalogue,
        "prompt_id": item.prompt_id,
        "sample": item.sample,
        "shard": item.shard,
        "active": bool(item.active),
        "status": STATUS_OF[ItemState(item.state)],
        "cost_usd": budget.usd(spent),
        "at_risk_usd": budget.usd(at_risk),
        "attempts": [_figures(attempt) for attempt in attempts],
    }
    return story


def _standing(item: Row[Any], attempts: Sequence[Row[Any]]) -> str:
    removed = "" if item.active else " It is no longer in its catalogue, so nothing more is sent for it."
    last = attempts[-1] if attempts else None
    match ItemState(item.state):
        case ItemState.DONE:
            said = "It has its image, so no run pays for it again."
        case ItemState.OPEN:
            said = "It is with the provider, or its image is being fetched: the next run goes on with it."
        case ItemState.UNKNOWN:
            said = "Nobody knows whether it was billed: nothing is sent until a person decides (nanobanana unknown)."
        case ItemState.OVERDUE:
            said = "Its task never ended: each run asks once more, and a person may decide (nanobanana unknown)."
        case ItemState.DEFERRED:
            said = f"It was put off, and a later run tries it again: {item.note or 'no reason was noted'}."
        case ItemState.FAILED:
            said = "It failed, and is not tried again by itself: nanobanana run --retry-failed, or edit its row."
        case ItemState.PENDING:
            edited = last is not None and last.request_hash != item.request_hash
            another = "Its row was edited since: the new request waits for a run." if edited else "It waits for a run."
            said = another if last is not None else "No request was ever sent for it: it waits for a run."
    return said + removed


def _tell_attempt(story: Story, attempt: Row[Any], before: Row[Any] | None, item: Row[Any], now: int) -> None:
    def tell(text: str, at: int | None = None) -> None:
        story.tell(text, at=at, attempt_id=attempt.attempt_id)

    since = "" if before is None else f", {duration(attempt.created_at - _end(before))} after the one before"
    edited = "" if attempt.request_hash == item.request_hash else " It was for the row as it was before an edit."
    tell(
        f"Attempt {attempt.attempt} was begun by run {attempt.run_id}{since}, {_BECAUSE[Cause(attempt.cause)]}; "
        f"{shown(attempt.reserved_micros)} was reserved for it on {attempt.day}.{edited}",
        attempt.created_at,
    )
    if attempt.submits > 1:
        tell(
            f"It was sent {attempt.submits} times: the provider refused the first "
            f"{count(attempt.submits - 1, 'time')}, which costs nothing."
        )
    if attempt.submitted_at is not None:
        waited = duration(attempt.submitted_at - attempt.created_at)
        word = f" ({attempt.first_status})" if attempt.first_status else ""
        tell(f"The provider took it, {waited} later, as task {attempt.task_id}{word}.", attempt.submitted_at)
    if attempt.completed_at is not None:
        tell(_task_end(attempt), attempt.completed_at)
    why = error(attempt.error_kind, attempt.error_code, attempt.error_message)
    if chronicle.is_open(attempt.state):
        tell(_waits(attempt, why, now))
    elif ending := _ended(attempt, why):
        tell(ending, attempt.stored_at or attempt.closed_at)


def _task_end(attempt: Row[Any]) -> str:
    took = duration(attempt.completed_at - (attempt.submitted_at or attempt.created_at))
    asked = count(attempt.polls, "question")
    tokens = f", {attempt.total_tokens:,} tokens" if attempt.total_tokens is not None else ""
    if attempt.state == AttemptState.FAILED:
        what = f"failed: {error(attempt.error_kind, attempt.error_code, attempt.error_message)}"
        return f"The task had {what}, after {took} and {asked}{tokens}; {_price(attempt)}."
    return f"The task was complete, after {took} and {asked}{tokens}; {_price(attempt)}."


def _price(attempt: Row[Any]) -> str:
    if attempt.cost_source is None:
        return "no cost was told, and none is booked"
    by = _PRICED_BY.get(attempt.cost_source, f"by the price list {attempt.price_version}")
    more = attempt.cost_micros - attempt.reserved_micros
    than = f", {shown(abs(more))} {'more' if more > 0 else 'less'} than reserved" if more else ""
    return f"it cost {shown(attempt.cost_micros)} {by}{than}"


def _ended(attempt: Row[Any], why: str) -> str | None:
    """How a closed attempt ended, unless the end of its task has said it."""
    match AttemptState(attempt.state):
        case AttemptState.STORED:
            files = orjson.loads(attempt.images or "[]")
            listed = ", ".join(f"{file['path']} ({file['width']}x{file['height']})" for file in files)
            but = f"; not all of it could be had: {quoted(attempt.error_message)}" if attempt.error_message else ""
            said = f"Checked and stored, {duration(attempt.stored_at - attempt.completed_at)} later: {listed}{but}."
        case AttemptState.UNUSABLE:
            said = f"No good image could be had from it, though it was paid for: {why}."
        case AttemptState.REFUSED:
            said = f"The provider refused it, so nothing was billed: {why}."
        case AttemptState.ABANDONED:
            risk = f"{shown(attempt.at_risk_micros)} is at risk until an invoice settles it"
            money = risk if attempt.at_risk_micros else _price(attempt)
            said = f"It was given up, by a person or the settings; {money}."
        case _:
            said = None
    return said


def _waits(attempt: Row[Any], why: str, now: int) -> str:
    """What an open attempt waits for."""
    risk = f"{shown(attempt.at_risk_micros)} is at risk"
    match AttemptState(attempt.state):
        case AttemptState.UNKNOWN:
            said = f"No answer came ({why}): it may have been billed, so it is not sent again; {risk}."
        case AttemptState.OVERDUE:
            said = f"It was given up waiting for after {count(attempt.polls, 'question')} ({why}); {risk}."
        case AttemptState.SUBMITTING:
            said = f"It is being sent, since {duration(now - attempt.created_at)}."
        case AttemptState.SUBMITTED:
            said = f"It is waited for, since {duration(now - attempt.submitted_at)}."
        case _:
            but = f": so far {quoted(attempt.error_message)}" if attempt.error_message else ""
            last = attempt.delivery_failed_at
            vain = "" if last is None else f"; last tried {duration(now - last)} ago, in vain"
            said = f"Its image is still to be fetched{vain}{but}."
    return said


def _holder(connection: Connection, attempt: Row[Any]) -> str:
    lease = chronicle.lease_of(connection, attempt.owner)
    if lease is None:
        return "No worker holds it: the next run of its shard takes it over."
    state = "has died, and the next run takes over" if identity_of(lease).known_dead() else "holds it"
    return f"Worker {lease.host}/{lease.pid} of run {lease.run_id} {state}."


def _end(attempt: Row[Any]) -> int:
    return attempt.stored_at or attempt.closed_at or attempt.completed_at or attempt.created_at


def _figures(attempt: Row[Any]) -> dict[str, Any]:
    names = ("attempt_id", "attempt", "cause", "state", "run_id", "day", "task_id", "submits", "polls", "total_tokens")
    errors = ("error_kind", "error_code", "error_message", "cost_source", "price_version")
    times = ("created_at", "submitted_at", "completed_at", "delivery_failed_at", "stored_at", "closed_at")
    figures = {name: getattr(attempt, name) for name in names + errors}
    figures |= {name: None if (at := getattr(attempt, name)) is None else iso(at) for name in times}
    money = ("reserved", "cost", "at_risk")
    return figures | {f"{name}_usd": budget.usd(getattr(attempt, f"{name}_micros")) for name in money}
