"""Any bytes in, plain values out: JSON that may be anything, made into what can be reckoned with and stored.

Nothing here knows the task API, and nothing here raises for what it is given.
"""

import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

Scrub = Callable[[str], str]
"""Takes secrets out of a text that will be kept."""

MAX_LINE_CHARS = 500
MAX_STORED_BYTES = 65_536
LEFT_OUT = "_left_out"
"""The key under which a cut object names the fields that were left out for their size."""

_MAX_DEPTH = 32
_MAX_INT_DIGITS = 40
_MAX_STORED_INT = 2**63 - 1
_MAX_FLOAT_EXPONENT = 300
_NAMES_LEFT_OUT = 20
_NAME_CHARS = 40
# Room for those names, at worst: four bytes a character.
_NAMES_BYTES = 4_096
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def decoded(body: bytes) -> Any:
    """A body's JSON, with exact numbers (Decimal for fractions); None when it is not JSON."""
    try:
        return _DECODER.decode(body.decode("utf-8", "replace").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


def number(value: Any) -> Decimal | None:
    """A finite number, given as a number or as its digits; None for anything else, truth values too."""
    if isinstance(value, str):
        # Decimal() would take "1_000".
        value = _decimal(value.strip()) if "_" not in value else None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    exact = Decimal(value)
    return exact if exact.is_finite() else None


def whole(value: Any, most: int) -> int | None:
    """A whole number from 0 to `most`, given as a number or as its digits; else None."""
    exact = number(value)
    if exact is None or not 0 <= exact <= most:
        return None
    return int(exact) if exact == exact.to_integral_value() else None


def line(text: str, scrub: Scrub) -> str:
    """One line of at most 500 characters, without control characters and secrets."""
    # Secrets go first: cut in two, one could no longer be told.
    text = scrub(text)[: MAX_LINE_CHARS * 20]
    text = " ".join(_CONTROL.sub(" ", text).split())
    return text if len(text) <= MAX_LINE_CHARS else f"{text[: MAX_LINE_CHARS - 1]}…"


def filled(value: Any, scrub: Scrub) -> str | None:
    """A string that says something, of any length, fit to be stored; else None."""
    if not isinstance(value, str) or not value.strip():
        return None
    return scrub(_UNSTORABLE.sub("\ufffd", value)).strip()


def storable(value: Any, scrub: Scrub, *, depth: int = 0) -> Any:
    """The value in what every JSON reader and database takes: no NaN, no huge numbers, no NUL, no half characters."""
    if isinstance(value, str):
        return scrub(_UNSTORABLE.sub("\ufffd", value))
    if isinstance(value, Decimal):
        return float(value) if abs(value.adjusted()) < _MAX_FLOAT_EXPONENT else str(value)[:_MAX_INT_DIGITS]
    if isinstance(value, dict | list):
        if depth >= _MAX_DEPTH:
            return "(nested too deeply)"
        if isinstance(value, list):
            return [storable(item, scrub, depth=depth + 1) for item in value]
        return {storable(name, scrub): storable(item, scrub, depth=depth + 1) for name, item in value.items()}
    # Truth values are ints too, and small ones.
    return str(value) if isinstance(value, int) and abs(value) > _MAX_STORED_INT else value


def bounded(fields: dict[str, Any], scrub: Scrub) -> dict[str, Any]:
    """The fields, storable, if they fit into 64 KiB of JSON; else those that do, and `LEFT_OUT` names the others."""
    kept: dict[str, Any] = storable(fields, scrub)
    if len(orjson.dumps(kept)) <= MAX_STORED_BYTES:
        return kept
    fitting: dict[str, Any] = {}
    left_out: list[str] = []
    room = MAX_STORED_BYTES - _NAMES_BYTES
    for name, value in kept.items():
        size = len(orjson.dumps({name: value}))
        if size <= room:
            room -= size
            fitting[name] = value
        else:
            left_out.append(name[:_NAME_CHARS])
    return fitting | {LEFT_OUT: left_out[:_NAMES_LEFT_OUT]}


def listed(value: Any) -> list[Any]:
    """The value when it is a list; any other that says something as the only one of a list."""
    if isinstance(value, list):
        return value
    return [value] if value else []


def _integer(digits: str) -> int | Decimal | None:
    # Python refuses very long integers with an error, which would make a whole paid answer unreadable.
    return int(digits) if len(digits) <= _MAX_INT_DIGITS else _decimal(digits)


def _decimal(digits: str) -> Decimal | None:
    try:
        return Decimal(digits)
    except InvalidOperation:
        return None


def _no_number(_: str) -> None:
    """NaN and the infinities: JSON doesn't know them, and nothing downstream can store them."""


_DECODER = json.JSONDecoder(parse_float=_decimal, parse_int=_integer, parse_constant=_no_number)
