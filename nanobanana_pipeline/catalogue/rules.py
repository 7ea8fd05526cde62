"""The rules that a catalogue must keep to, checked on whole columns at a time against the model spec's data.

A check gives the rows that break its rule, and how to say so; nothing is said before somebody asks. Streams of rows,
and the one rule that needs to know all of them (unique prompt ids), are `validation`'s.
"""
# pyarrow has no types of its own, and makes pyarrow.compute's functions when it is imported.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.catalogue import columns
from nanobanana_pipeline.catalogue.columns import PlainBatch
from nanobanana_pipeline.model_specs.spec import ModelSpec

_VALUE_CHARS = 200
_SHOWN_CHARS = 80
HIGHEST_PRIORITY = 1_000_000
"""The lowest is this much below zero."""
# Nothing but blanks, control and zero-width characters.
_INVISIBLE = r"\A[\p{Z}\p{C}]*\z"

Mask = npt.NDArray[np.bool_]
Broken = tuple["Rule", str, Any, str]
"""A rule that a row breaks: rule, column, value, and what to say of it."""


class Rule(StrEnum):
    """What a catalogue must keep to."""

    UNREADABLE_FILE = "unreadable_file"
    MISSING_COLUMN = "missing_column"
    DUPLICATE_COLUMN = "duplicate_column"
    COLUMN_TYPE = "column_type"
    TEXT_ENCODING = "text_encoding"
    NUL_CHARACTER = "nul_character"
    PROMPT_MISSING = "prompt_missing"
    PROMPT_TOO_LONG = "prompt_too_long"
    IMAGE_URLS_TOO_MANY = "image_urls_too_many"
    IMAGE_URL_INVALID = "image_url_invalid"
    ASPECT_RATIO_UNKNOWN = "aspect_ratio_unknown"
    RESOLUTION_UNKNOWN = "resolution_unknown"
    MODALITY_UNKNOWN = "modality_unknown"
    IMAGE_MODALITY_MISSING = "image_modality_missing"
    SAMPLES_OUT_OF_RANGE = "samples_out_of_range"
    PRIORITY_OUT_OF_RANGE = "priority_out_of_range"
    DUPLICATE_PROMPT_ID = "duplicate_prompt_id"


FILE_RULES = frozenset({Rule.UNREADABLE_FILE, Rule.MISSING_COLUMN, Rule.DUPLICATE_COLUMN, Rule.COLUMN_TYPE})
"""Rules about a whole file: where one is broken rows went unseen, and what is missing was not removed by anyone."""


@dataclass(frozen=True, slots=True)
class RejectedPrompt:
    """A bad row, or (with `row_number` None) a bad file. Rows count from 1; `value` has at most 200 characters."""

    catalogue: str
    file: str
    row_number: int | None
    prompt_id: str | None
    rule: Rule
    column_name: str | None
    value: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The rows of a batch that break a rule; `value` and `says` tell what is there and what is wrong, by position."""

    rule: Rule
    column: str
    rows: Mask
    value: Callable[[int], Any]
    says: Callable[[int], str]


def schema_faults(schema: pa.Schema) -> Iterator[tuple[Rule, str, str, str]]:
    """What is wrong with a file's columns, as rule, column, value and what to say of it."""
    if columns.REQUIRED not in schema.names:
        has = ", ".join(schema.names) or "none"
        yield (
            Rule.MISSING_COLUMN,
            columns.REQUIRED,
            has,
            f"there is no such column, only {has[:_VALUE_CHARS]}; add or rename",
        )
    for name in sorted({name for name in schema.names if schema.names.count(name) > 1}):
        yield Rule.DUPLICATE_COLUMN, name, name, "there is more than one column of that name: rename or drop one"
    for field in schema:
        kind = columns.KNOWN.get(field.name)
        if kind and not columns.fits(kind, field.type):
            yield (
                Rule.COLUMN_TYPE,
                field.name,
                str(field.type),
                f"its type is {str(field.type)[:_SHOWN_CHARS]}, it must be {kind}",
            )


def undecodable(batch: PlainBatch) -> list[Fault]:
    """The rows with text that is not UTF-8. Until they are gone, no other check may look at the batch."""
    arrays = {**batch.known, **batch.labels}
    return [_undecodable_rows(name, array) for name, array in arrays.items() if not _is_valid(array)]


def faults(batch: PlainBatch, spec: ModelSpec) -> list[Fault]:
    """The rows that break a rule, by rule, most important first; only rules that some row breaks."""
    found: list[Fault] = []
    for name, check in _CHECKS.items():
        if name in batch.known:
            found += (fault for fault in check(name, batch.known[name], spec) if fault.rows.any())
    return found


def reject(
    catalogue: str, file: str, row_number: int, prompt_id: str | None, broken: Sequence[Broken]
) -> RejectedPrompt:
    """A row that breaks some rules; the first speaks for it."""
    rule, column, value, says = broken[0]
    also = "".join(f"; also {more[0]} in {more[1]}" for more in broken[1:])
    return RejectedPrompt(
        catalogue=catalogue,
        file=file,
        row_number=row_number,
        prompt_id=prompt_id,
        rule=rule,
        column_name=column,
        value=_as_value(value),
        message=f"{file}, row {row_number}, column {column}: {says} ({rule}){also}",
    )


def reject_file(
    catalogue: str, file: str, rule: Rule, column: str | None, value: str | None, says: str
) -> RejectedPrompt:
    """A file of which no row, or no further row, can be used."""
    place = f"{file}, column {column}" if column else file
    return RejectedPrompt(catalogue, file, None, None, rule, column, _as_value(value), f"{place}: {says} ({rule})")


def shown(value: Any) -> str:
    """A value as a message quotes it: as JSON, so that blanks and control characters can be seen, and not too long."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def _as_value(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else str(value) if isinstance(value, float) else orjson.dumps(value).decode()
    # PostgreSQL and CSV readers can't hold the character NUL.
    return text[:_VALUE_CHARS].replace("\0", "\\0")


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _undecodable_rows(name: str, array: pa.Array) -> Fault:
    # take, not slice: a slice of a list still has all the entries, the bad ones too.
    rows = np.array([not _is_valid(array.take(pa.array([i]))) for i in range(len(array))])

    def value(i: int) -> str | None:
        return array[i].as_buffer().to_pybytes().decode(errors="replace") if pa.types.is_string(array.type) else None

    return Fault(
        Rule.TEXT_ENCODING,
        name,
        rows,
        value,
        lambda i: f"{shown(value(i))} is not UTF-8 text" if value(i) else "it holds text that is not UTF-8",
    )


def _prompt(name: str, text: pa.StringArray, spec: ModelSpec) -> Iterator[Fault]:
    limits = spec.limits
    chars = pc.utf8_length(text)
    too_short = pc.or_(pc.less(chars, limits.prompt_min_chars), pc.match_substring_regex(text, _INVISIBLE))
    value = _value_of(text)
    yield Fault(Rule.PROMPT_MISSING, name, _mask(too_short, null=True), value, lambda _: "a prompt needs some text")
    yield Fault(
        Rule.PROMPT_TOO_LONG,
        name,
        _mask(pc.greater(chars, limits.prompt_max_chars)),
        value,
        lambda i: f"{shown(value(i))} has {chars[i]} characters, the limit is {limits.prompt_max_chars}",
    )
    yield from _plain_text(name, text, spec)


def _plain_text(name: str, text: pa.StringArray, _: ModelSpec) -> Iterator[Fault]:
    value = _value_of(text)
    with_nul = _mask(pc.match_substring(text, "\0"))
    yield Fault(Rule.NUL_CHARACTER, name, with_nul, value, lambda i: f"{shown(value(i))} has a NUL character in it")


def _image_urls(name: str, urls: pa.ListArray, spec: ModelSpec) -> Iterator[Fault]:
    limits, value, count = spec.limits, _value_of(urls), columns.lengths(urls)
    yield Fault(
        Rule.IMAGE_URLS_TOO_MANY,
        name,
        count > limits.image_urls_max,
        value,
        lambda i: f"{count[i]} URLs, the limit is {limits.image_urls_max}",
    )
    entries = urls.flatten()
    good = pc.and_(
        pc.match_substring_regex(entries, _url_pattern(limits.url_schemes)),
        pc.less_equal(pc.utf8_length(entries), limits.url_max_chars),
    )
    schemes = " or ".join(limits.url_schemes)
    yield _entries_fault(
        Rule.IMAGE_URL_INVALID,
        name,
        urls,
        ~_mask(good),
        f"is no {schemes} URL of at most {limits.url_max_chars} characters",
    )


def _url_pattern(schemes: Sequence[str]) -> str:
    r"""Match a scheme and a host, without a blank or control character anywhere (RE2 syntax)."""
    host = r"(?:\[[0-9A-Fa-f:.]+\]|[^\p{Z}\p{C}/?#@:\[\]<>\\]+)"
    user, port, rest = r"(?:[^\p{Z}\p{C}/?#@\\]*@)?", r"(?::[0-9]{1,5})?", r"(?:[/?#][^\p{Z}\p{C}]*)?"
    return rf"\A(?i:{'|'.join(schemes)})://{user}{host}{port}{rest}\z"


def _choice(rule: Rule, choices: Callable[[ModelSpec], Sequence[str]]) -> "_Check":
    def check(name: str, text: pa.StringArray, spec: ModelSpec) -> Iterator[Fault]:
        allowed, value = choices(spec), _value_of(text)
        known = pc.is_in(text, value_set=pa.array(["", *allowed]))
        yield Fault(
            rule,
            name,
            _mask(pc.and_(pc.is_valid(text), pc.invert(known))),
            value,
            lambda i: f"{shown(value(i))} is not one of {', '.join(allowed)}",
        )

    return check


def _modalities(name: str, modalities: pa.ListArray, spec: ModelSpec) -> Iterator[Fault]:
    allowed, image = spec.response_modalities, spec.options.image_modality
    entries = pc.ascii_lower(modalities.flatten())
    known = pc.is_in(entries, value_set=pa.array([word.lower() for word in allowed]))
    says = f"is not one of {', '.join(allowed)}"
    yield _entries_fault(Rule.MODALITY_UNKNOWN, name, modalities, ~_mask(known), says)
    count = columns.lengths(modalities)
    with_image = _any_entry(count, _mask(pc.equal(entries, image.lower())))
    value = _value_of(modalities)
    yield Fault(
        Rule.IMAGE_MODALITY_MISSING,
        name,
        (count > 0) & ~with_image,
        value,
        lambda i: f"{shown(value(i))} can never give an image: add {image}",
    )


def _samples(name: str, numbers: pa.NumericArray, spec: ModelSpec) -> Iterator[Fault]:
    yield _whole_number(Rule.SAMPLES_OUT_OF_RANGE, name, numbers, 1, spec.limits.samples_max)


def _priority(name: str, numbers: pa.NumericArray, _spec: ModelSpec) -> Iterator[Fault]:
    yield _whole_number(Rule.PRIORITY_OUT_OF_RANGE, name, numbers, -HIGHEST_PRIORITY, HIGHEST_PRIORITY)


def _whole_number(rule: Rule, name: str, numbers: pa.NumericArray, least: int, most: int) -> Fault:
    value = _value_of(numbers)
    good = pc.and_(pc.greater_equal(numbers, least), pc.less_equal(numbers, most))
    if pa.types.is_floating(numbers.type):
        good = pc.and_(good, pc.equal(numbers, pc.floor(numbers)))
    return Fault(
        rule,
        name,
        ~_mask(good, null=True),
        value,
        lambda i: f"{value(i)} is not a whole number from {least} to {most}",
    )


_Check = Callable[[str, Any, ModelSpec], Iterator[Fault]]
_CHECKS: dict[str, _Check] = {
    "prompt": _prompt,
    "prompt_id": _plain_text,
    "image_urls": _image_urls,
    "aspect_ratio": _choice(Rule.ASPECT_RATIO_UNKNOWN, lambda spec: spec.aspect_ratios),
    "resolution": _choice(Rule.RESOLUTION_UNKNOWN, lambda spec: spec.resolutions),
    "response_modalities": _modalities,
    "samples": _samples,
    "campaign": _plain_text,
    "priority": _priority,
}


def _mask(booleans: pa.BooleanArray, *, null: bool = False) -> Mask:
    return pc.fill_null(booleans, null).to_numpy(zero_copy_only=False)


def _value_of(array: pa.Array) -> Callable[[int], Any]:
    return lambda i: array[i].as_py()


def _any_entry(count: npt.NDArray[np.int64], entries: Mask) -> Mask:
    """The rows, of `count` entries each, that have a marked entry."""
    row_of_entry = np.repeat(np.arange(len(count)), count)
    return np.bincount(row_of_entry, weights=entries, minlength=len(count)) > 0


def _entries_fault(rule: Rule, name: str, lists: pa.ListArray, bad: Mask, says: str) -> Fault:
    count = columns.lengths(lists)
    ends = np.cumsum(count)

    def first_bad(i: int) -> str:
        mine = bad[ends[i] - count[i] : ends[i]]
        return shown(lists[i].as_py()[int(np.argmax(mine))])

    return Fault(rule, name, _any_entry(count, bad), _value_of(lists), lambda i: f"{first_bad(i)} {says}")
