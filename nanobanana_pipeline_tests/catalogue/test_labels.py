"""Labels: whatever a further column holds becomes valid JSON."""
# pyarrow has no types of its own.
# pyright: reportUnknownParameterType=false

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue.labels import labels_json

NOON = datetime(2026, 5, 1, 12, 30, 0, 250_000, tzinfo=UTC)


def written(array: pa.Array) -> list[Any]:
    """The values of a column after a way through JSON."""
    return [json.loads(text)["x"] for text in labels_json({"x": array})]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a", None, ""]), ["a", None, ""]),
        (pa.array(["a", "a", None]).dictionary_encode(), ["a", "a", None]),
        (pa.array(["a"], pa.string_view()), ["a"]),
        (pa.array([True, None]), [True, None]),
        (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        (pa.array([1.5, math.nan, math.inf, -math.inf, None]), [1.5, None, None, None, None]),
        (pa.array([0.5], pa.float16()), [0.5]),
        (pa.array([0.1], pa.float32()), [0.1]),
        (pa.nulls(2), [None, None]),
        (pa.array([Decimal("1.50"), None]), ["1.50", None]),
        (pa.array([Decimal("0E-10")], pa.decimal256(40, 10)), ["0E-10"]),
        (pa.array([date(2026, 5, 1), None]), ["2026-05-01", None]),
        (pa.array([10_000_000], pa.date32()), ["29349-01-26"]),
        (pa.array([time(1, 2, 3)]), ["01:02:03.000000"]),
        (pa.array([datetime(2026, 5, 1, 12)], pa.timestamp("s")), ["2026-05-01 12:00:00"]),  # noqa: DTZ001
        (pa.array([1], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001"]),
        (pa.array([NOON], pa.timestamp("ms", "UTC")), ["2026-05-01 12:30:00.250Z"]),
        (pa.array([NOON], pa.timestamp("ms", "Mars/Olympus")), ["2026-05-01 12:30:00.250Z"]),
        (pa.array([timedelta(minutes=1.5)]), [90.0]),
        (pa.array([b"\xff\x00", None]), ["/wA=", None]),
        (pa.array([[1, None], [], None]), [[1, None], [], None]),
        (pa.array([[math.nan]]), [[None]]),
        (pa.array([{"a": NOON, "b": [Decimal("1.5"), None]}]), [{"a": NOON.isoformat(), "b": ["1.5", None]}]),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), [[["k", 1]]]),
        (pa.array([[10_000_000]], pa.list_(pa.date32())), [None]),
        (pa.array([b"0123456789abcdef"], pa.uuid()), ["MDEyMzQ1Njc4OWFiY2RlZg=="]),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), [[1, 2, 3]]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_every_type_becomes_json(array: pa.Array, expected: list[Any]) -> None:
    """An analyst's odd column must not stop a run, nor make a table that no JSON reader accepts."""
    assert written(array) == expected


@given(st.floats())
def test_floats_survive(value: float) -> None:
    """A score must be the same score in the tables; JSON has no name for what is no number."""
    assert written(pa.array([value])) == [value if math.isfinite(value) else None]


@given(st.text(), st.text())
def test_text_and_names_are_escaped(name: str, value: str) -> None:
    """Quotes, line breaks and NUL in a value or in a column's name must not break out of the JSON."""
    [text] = labels_json({name: pa.array([value])})
    assert json.loads(text) == {name: value}


def test_columns_stay_in_order() -> None:
    """Labels read as the catalogue does, left to right."""
    assert labels_json({"b": pa.array([1]), "a": pa.array(["x"])}) == ['{"b":1,"a":"x"}']
