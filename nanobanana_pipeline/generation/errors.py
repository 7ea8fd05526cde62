"""What an error is: the one place that turns statuses, codes and messages into a kind, from the model spec's data.

Deciding belongs here; reading bodies is `wire`'s, and acting on a kind (again, later, never, stop) is the engine's.
"""

import math
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from nanobanana_pipeline.generation.answers import ProviderError
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.spec import ErrorCode, ModelSpec, Outcome, SubmitRule

STOPS_RUN = frozenset({ErrorKind.AUTH, ErrorKind.BALANCE})
"""Kinds that the next request would meet as well: the whole run stops at the first."""

RETRY_SUBMIT = frozenset({ErrorKind.RETRYABLE, ErrorKind.RATE_LIMITED})
"""Kinds of a refused submit that are tried again by themselves."""

MAX_RETRY_AFTER_S = 3600.0
"""The longest wait that a `Retry-After` may impose, in seconds."""

_FORBIDDEN = 403
_HTTP_ERRORS = range(400, 500)

# The provider has one status for an empty account and for a key that may not do this (402 is not used): its words
# decide, and where they say nothing, the model spec does. Empty accounts were also seen behind a 400, a 429 and a 200
# with an error.
_BALANCE_WORDS = ("balance", "credit", "quota", "top up", "recharge", "arrears", "payment", "billing")
_EMPTY_ACCOUNT_WORDS = (
    "insufficient balance",
    "insufficient credit",
    "insufficient quota",
    "insufficient fund",
    "no credits",
)
_AUTH_WORDS = (
    "permission",
    "permitted",
    "forbidden",
    "not allowed",
    "access",
    "denied",
    "unauthori",
    "api key",
    "token",
    "whitelist",
)

# A status that says no for good leaves open what it is about: then a listed code, or words, say it better.
_BROAD = frozenset({ErrorKind.INVALID_REQUEST, ErrorKind.BALANCE})


def kind_of_submit_status(
    status: int, error: ProviderError | None, spec: ModelSpec
) -> tuple[Outcome, ErrorKind | None, str]:
    """What an HTTP status, with the error in its body, says of a submit: the outcome, its kind and the status' meaning.

    The kind is None only for `accepted`, which means: read the body.
    """
    rule: SubmitRule = spec.submit.rule(status)
    if rule.outcome != "refused" or rule.kind is None:
        return rule.outcome, rule.kind, rule.meaning
    return rule.outcome, _refined(rule.kind, status, error, spec), rule.meaning


def kind_of_refusal(error: ProviderError, spec: ModelSpec) -> ErrorKind:
    """The kind of an error that came with HTTP 200 in the place of a task: no task was created.

    Gateways put the status they mean into the code (`{"code": 429}`), so a code of that range is read as one.
    """
    listed = _listed(error.code, spec)
    if listed is not None:
        return listed.kind
    status = int(error.code) if error.code else 0
    if status in _HTTP_ERRORS:
        outcome, kind, _ = kind_of_submit_status(status, error, spec)
        if outcome == "refused" and kind is not None:
            return kind
    if _says(error.message, _EMPTY_ACCOUNT_WORDS):
        return ErrorKind.BALANCE
    return _by_message(error.message, spec) or spec.errors.default.kind


def kind_of_poll_status(status: int, error: ProviderError | None, spec: ModelSpec) -> ErrorKind:
    """The kind of a poll that was not answered with a task. It never means that the task failed."""
    kind = spec.poll.kind(status)
    return _account_trouble(kind, error) if status == _FORBIDDEN else kind


def kind_of_task_error(code: str | None, message: str, spec: ModelSpec) -> tuple[ErrorKind, bool]:
    """The kind of a failed task's error, and whether the task is billed all the same.

    A listed code decides; without one, words of the message that the model spec lists; else the spec's default.
    """
    listed = _listed(code, spec)
    if listed is not None:
        return listed.kind, listed.billed
    return _by_message(message, spec) or spec.errors.default.kind, spec.errors.default.billed


def retry_after_s(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait that a `Retry-After` header (seconds, or an HTTP date) asks for, from 0 to an hour, or None.

    `headers` has lower-case or case-insensitive names; `now` is in seconds since the epoch.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, time.time() if now is None else now)
    if math.isnan(seconds) or (seconds < 0 and value.startswith("-")):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def _refined(kind: ErrorKind, status: int, error: ProviderError | None, spec: ModelSpec) -> ErrorKind:
    if error is None:
        return kind
    if _says(error.message, _EMPTY_ACCOUNT_WORDS) and status in _HTTP_ERRORS:
        return ErrorKind.BALANCE
    if kind not in _BROAD:
        return kind
    listed = _listed(error.code, spec)
    if listed is not None:
        return listed.kind
    if status == _FORBIDDEN:
        return _account_trouble(kind, error)
    return (_by_message(error.message, spec) or kind) if kind is ErrorKind.INVALID_REQUEST else kind


def _account_trouble(kind: ErrorKind, error: ProviderError | None) -> ErrorKind:
    if error is None:
        return kind
    # Money first: "access denied: insufficient balance" is about money.
    if _says(error.message, _BALANCE_WORDS):
        return ErrorKind.BALANCE
    return ErrorKind.AUTH if _says(error.message, _AUTH_WORDS) else kind


def _listed(code: str | None, spec: ModelSpec) -> ErrorCode | None:
    return spec.errors.codes.get(code) if code else None


def _by_message(message: str, spec: ModelSpec) -> ErrorKind | None:
    for entry in spec.errors.messages:
        if _says(message, entry.words):
            return entry.kind
    return None


def _says(message: str, words: tuple[str, ...]) -> bool:
    message = message.lower()
    return any(word in message for word in words)


def _seconds_until(date: str, now: float) -> float:
    try:
        then = parsedate_to_datetime(date)
        # A date without a zone means UTC in HTTP.
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
