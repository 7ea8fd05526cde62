"""Further columns of a catalogue as JSON, one object a row: whatever type a column has, the JSON is valid.

Not-a-number and infinity are null, instants and dates are text, decimals are text (exact), durations are seconds,
and bytes are base64. Which columns are labels is for `columns` to say.
"""
# pyarrow has no types of its own, and makes pyarrow.compute's functions when it is imported.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

import base64
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from itertools import chain, repeat
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from nanobanana_pipeline.catalogue.columns import plain


def labels_json(columns: dict[str, pa.Array]) -> list[str]:
    """The rows of some columns (at least one) of equal length as JSON objects."""
    keys = [f"{mark}{_dumps(name)}:" for mark, name in zip(chain("{", repeat(",")), columns, strict=False)]
    values = [_json_values(plain(array)) for array in columns.values()]
    # Arrow joins a million rows in the time that Python takes for a few thousand.
    parts = chain.from_iterable(zip(keys, values, strict=True))
    return pc.binary_join_element_wise(*parts, "}", "", null_handling="replace", null_replacement="null").to_pylist()


def _json_values(array: pa.Array) -> pa.StringArray:
    """Each value of a column as JSON text, and null where it is null."""
    stored = array.type
    if pt.is_boolean(stored) or pt.is_integer(stored) or pt.is_null(stored):
        return array.cast(pa.string())
    if pt.is_floating(stored):
        return pc.if_else(pc.is_finite(array), array, pa.scalar(None, stored)).cast(pa.string())
    if pt.is_string(stored) or pt.is_large_string(stored) or pt.is_string_view(stored):
        # Labels are for grouping: most repeat a few values, and each needs to be escaped only once.
        encoded = array.cast(pa.string()).dictionary_encode()
        return pa.array(map(_dumps, encoded.dictionary.to_pylist()), pa.string()).take(encoded.indices)
    if pt.is_timestamp(stored) or pt.is_date(stored) or pt.is_time(stored) or pt.is_decimal(stored):
        # Not by way of Python: its dates end with the year 9999 and its times at microseconds.
        return pc.binary_join_element_wise('"', _as_written(array), '"', "")
    return pa.array([_dumps(_plain_value(_python_value(scalar))) for scalar in array], pa.string())


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def _as_written(array: pa.Array) -> pa.StringArray:
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        # A time zone that this machine has never heard of; the instants themselves are UTC.
        return pc.binary_join_element_wise(array.cast(pa.timestamp(array.type.unit)).cast(pa.string()), "Z", "")


def _python_value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        # A date within a list or struct that Python has no value for.
        return None


_WRITERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    ((str, int, float, type(None)), lambda value: value),
    ((bytes, bytearray), lambda value: base64.b64encode(value).decode()),
    ((datetime, date, time), lambda value: value.isoformat()),
    (timedelta, lambda value: value.total_seconds()),
    (dict, lambda value: {_key(key): _plain_value(inner) for key, inner in value.items()}),
    ((list, tuple), lambda value: [_plain_value(inner) for inner in value]),
)


def _plain_value(value: Any) -> Any:
    for types, write in _WRITERS:
        if isinstance(value, types):
            return write(value)
    return str(value)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(_plain_value(key))
