"""Bodies to objects and back: the task API's shapes, read leniently and never trusted.

Which field means what belongs here; making plain values of bytes is `values`' work, saying what an error is `errors`',
and sending `client`'s. Whatever the bytes are, reading them gives a value and never raises: a body may be a gateway's
HTML, half a document, or the answer to a task that is paid already.
"""

import json
import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation import errors, values
from nanobanana_pipeline.generation.answers import (
    Accepted,
    OutputEntry,
    Polled,
    PollError,
    ProviderError,
    Refused,
    Task,
    Unknown,
)
from nanobanana_pipeline.generation.values import Scrub
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.pricing import Usage
from nanobanana_pipeline.model_specs.spec import ModelSpec

UNREAD_OUTPUT = "unread_output"
"""The key of the metadata under which output entries are kept that nobody can read yet."""

_MAX_ID_CHARS = 512
_MAX_CODE = 999_999_999
# The words that count stand in front, and a page may be megabytes.
_MAX_PAGE_CHARS = 4096
_MICRO = Decimal("0.000001")
# More than anybody pays for one task: a figure beyond is a mistake, and the price list says better.
_MAX_COST_USD = 10_000
_MAX_TOKENS = 1_000_000_000
_MAX_EPOCH_MS = 10**14
_SUCCESSES = range(200, 300)
_TAG = re.compile(r"<(style|script)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_ENTRY_TYPES = ("image", "text")
_MESSAGE_FIELDS = ("error_message", "message", "detail", "msg")
_ALL_IS_WELL = frozenset({"", "ok", "success"})


def _same(text: str) -> str:
    return text


def submit_body(request: Request, spec: ModelSpec) -> dict[str, Any]:
    """The body of a submit. What the request leaves open is left out, not sent as null."""
    params: dict[str, Any] = {"prompt": request.prompt}
    if request.image_urls:
        params["image_urls"] = list(request.image_urls)
    if request.aspect_ratio:
        params["aspect_ratio"] = request.aspect_ratio
    if request.resolution:
        params["resolution"] = request.resolution
    modalities = _modalities(request, spec)
    if modalities:
        params["response_modalities"] = modalities
    return {"model": request.model, "input": [{"params": params}]}


def parse_submit(
    status: int, headers: Mapping[str, str], body: bytes, spec: ModelSpec, *, scrub: Scrub = _same
) -> Accepted | Refused | Unknown:
    """What the answer to a submit says. `scrub` takes secrets out of any text that is kept.

    A task is accepted only when it has an id; an error in the place of an id means that there is no task. Anything else
    with a success status is unknown: a task may exist that nobody can ask about.
    """
    answer = values.decoded(body)
    error = None if status in _SUCCESSES else _body_error(answer, body, scrub)
    outcome, kind, meaning = errors.kind_of_submit_status(status, error, spec)
    if outcome == "unknown":
        return Unknown(_sentence(f"HTTP {status} ({meaning})", error), status)
    if outcome == "refused" and kind is not None:
        message = _sentence(f"HTTP {status} ({meaning})", error)
        return Refused(kind, error.code if error else None, message, status, errors.retry_after_s(headers))
    if not isinstance(answer, dict):
        return Unknown(f"HTTP {status} with no readable body", status)
    task = _task(answer, spec, scrub)
    if task.id is not None:
        return Accepted(task)
    if task.error is None:
        return Unknown(f"HTTP {status} with neither a task id nor an error", status)
    refusal = errors.kind_of_refusal(task.error, spec)
    return Refused(refusal, task.error.code, task.error.message, status, errors.retry_after_s(headers))


def parse_poll(
    status: int, headers: Mapping[str, str], body: bytes, spec: ModelSpec, *, scrub: Scrub = _same
) -> Polled | PollError:
    """What the answer to a poll says. A `PollError` says nothing about the task: it may still be running, or done."""
    answer = values.decoded(body)
    if status not in _SUCCESSES:
        error = _body_error(answer, body, scrub)
        kind = errors.kind_of_poll_status(status, error, spec)
        return PollError(kind, _sentence(f"HTTP {status}", error), status, errors.retry_after_s(headers))
    if not isinstance(answer, dict):
        return PollError(ErrorKind.RETRYABLE, f"HTTP {status} with no readable body", status)
    task = _task(answer, spec, scrub)
    if not task.status_word:
        # An error without a status is about the question; only the word for it says that a task has failed.
        return PollError(ErrorKind.RETRYABLE, _sentence(f"HTTP {status} without a status", task.error), status)
    return Polled(task)


def _modalities(request: Request, spec: ModelSpec) -> list[str] | str | None:
    wanted = request.response_modalities
    if not wanted:
        return None
    if spec.api.modalities_shape == "list":
        return list(wanted)
    if len(wanted) == 1:
        return wanted[0]
    # A bare string can name one modality only. All of the default ones are what leaving the parameter out asks for.
    return None if set(wanted) == set(spec.default_response_modalities) else list(wanted)


def _task(answer: dict[str, Any], spec: ModelSpec, scrub: Scrub) -> Task:
    word = answer.get("status")
    word = values.line(word, scrub).lower() if isinstance(word, str) else ""
    entries, unread = _entries(answer.get("output"), scrub)
    return Task(
        id=_task_id(answer.get("id")),
        state=spec.statuses.state_of(word),
        status_word=word,
        progress=_progress(answer.get("progress")),
        created_at=values.whole(answer.get("created_at"), _MAX_EPOCH_MS),
        entries=entries,
        usage=_usage(answer.get("usage")),
        error=_error(answer.get("error"), scrub),
        metadata=_kept(answer.get("metadata"), "metadata", scrub, unread=unread),
        raw_usage=_kept(answer.get("usage"), "usage", scrub),
    )


def _task_id(value: Any) -> str | None:
    """An id that can be asked about: it goes into a URL and a table, so what has control characters is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    value = value.strip()
    # "." and ".." would change the path that is asked.
    usable = 0 < len(value) <= _MAX_ID_CHARS and value.isprintable() and value not in {".", ".."}
    return value if usable else None


def _progress(value: Any) -> float | None:
    number = values.number(value)
    return float(number) if number is not None and 0 <= number <= 1 else None


def _kept(value: Any, name: str, scrub: Scrub, *, unread: list[Any] | None = None) -> dict[str, Any] | None:
    """A free-form field whole, as an object; what is none goes under its `name`."""
    if not isinstance(value, dict):
        value = None if value in (None, "", []) else {name: value}
    if unread:
        # Somebody paid for what these say, and a later version may be able to read them.
        value = {**(value or {}), UNREAD_OUTPUT: unread}
    return None if value is None else values.bounded(value, scrub)


def _entries(output: Any, scrub: Scrub) -> tuple[tuple[OutputEntry, ...], list[Any]]:
    """The entries of an output (a list of `{content: […]}`, or of entries), and those that nobody can read."""
    entries: list[OutputEntry] = []
    unread: list[Any] = []
    for raw in _flat(output):
        entry = _entry(raw, scrub)
        if entry is not None:
            entries.append(entry)
        if entry is None or (entry.url is None and entry.text is None):
            unread.append(raw)
    return tuple(entries), unread


def _flat(output: Any) -> list[Any]:
    flat: list[Any] = []
    for part in values.listed(output):
        # A text entry may hold its text in `content`, where a container holds its entries.
        inner = part.get("content") if isinstance(part, dict) else None
        if isinstance(inner, list | dict) and not _is_entry(part):
            flat += values.listed(inner)
        else:
            flat.append(part)
    return flat


def _is_entry(part: dict[str, Any]) -> bool:
    return part.get("type") in _ENTRY_TYPES or isinstance(part.get("url"), str) or isinstance(part.get("text"), str)


def _entry(raw: Any, scrub: Scrub) -> OutputEntry | None:
    if not isinstance(raw, dict):
        return None
    url = values.filled(raw.get("url"), scrub)
    kind = raw.get("type")
    kind = values.line(kind, scrub).lower() if isinstance(kind, str) else ""
    kind = kind or ("image" if url else "text")
    # Where a text entry has its text is not documented.
    texts = {name: values.filled(raw.get(name), scrub) for name in ("text", "content")} if kind == "text" else {}
    where, text = next(((name, text) for name, text in texts.items() if text), ("", None))
    extra = {name: value for name, value in raw.items() if name not in {"type", "url", where}}
    return OutputEntry(kind, url, text, values.bounded(extra, scrub))


def _usage(usage: Any) -> Usage | None:
    """The counts and the cost that make sense; None when none does."""
    if not isinstance(usage, dict):
        return None
    read = Usage(
        prompt_tokens=_tokens(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_tokens(usage, "completion_tokens", "output_tokens"),
        total_tokens=_tokens(usage, "total_tokens"),
        cost_micros=_cost_micros(usage.get("cost")),
    )
    return None if read == Usage() else read


def _tokens(usage: dict[str, Any], *names: str) -> int | None:
    counts = (values.whole(usage.get(name), _MAX_TOKENS) for name in names)
    return next((count for count in counts if count is not None), None)


def _cost_micros(cost: Any) -> int | None:
    """Dollars (a string or a number) as whole micro-dollars; None for no cost, and for one that can't be right."""
    usd = values.number(cost)
    if usd is None or not 0 <= usd <= _MAX_COST_USD:
        return None
    # Rounded once, from the digits as sent; then only the point moves.
    return int(usd.quantize(_MICRO, ROUND_HALF_UP).scaleb(6))


def _error(error: Any, scrub: Scrub) -> ProviderError | None:
    """An error in any of its shapes; None when there is none: null, empty, or a zero that says all is well."""
    if not isinstance(error, dict):
        message = values.line(_text_of(error, scrub), scrub) if error else ""
        return ProviderError(None, message) if message else None
    number = values.whole(error.get("code"), _MAX_CODE)
    word = error.get("code") if number is None else None
    message = next(filter(None, (_text_of(error.get(name), scrub) for name in _MESSAGE_FIELDS)), "")
    if not number and not word and message.lower() in _ALL_IS_WELL and not _says_more(error):
        return None
    if isinstance(word, str):
        # A word for a code ("insufficient_balance") says as much as a message.
        message = f"{word}: {message}".removesuffix(": ")
    code = f"{number:09d}" if number else None
    return ProviderError(code, values.line(message or _text_of(error, scrub), scrub))


def _says_more(error: dict[str, Any]) -> bool:
    return any(value for name, value in error.items() if name not in {"code", *_MESSAGE_FIELDS})


def _text_of(value: Any, scrub: Scrub) -> str:
    """A string as it is, anything else that says something as JSON."""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(values.storable(value, scrub), ensure_ascii=False) if value else ""


def _body_error(answer: Any, body: bytes, scrub: Scrub) -> ProviderError | None:
    """The error in the body of an HTTP error: JSON in several shapes, a gateway's HTML, plain text, or nothing."""
    if isinstance(answer, dict):
        bare = {name: answer.get(name) for name in ("code", *_MESSAGE_FIELDS)}
        return _error(answer.get("error"), scrub) or _error(bare, scrub)
    if answer is not None:
        return _error(answer, scrub)
    page = scrub(body.decode("utf-8", "replace"))[:_MAX_PAGE_CHARS]
    text = values.line(_TAG.sub(" ", page), scrub)
    return ProviderError(None, text) if text else None


def _sentence(start: str, error: ProviderError | None) -> str:
    return f"{start}: {error.message}" if error else start
