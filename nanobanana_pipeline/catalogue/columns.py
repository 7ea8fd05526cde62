"""Brings the Arrow types that writers use for one and the same thing to a single plain type.

Views, dictionaries, large and fixed lists, a bare string where a list of one is meant: after this it is all the same.
What a value must be is `rules`'.
"""
# pyarrow has no types of its own, and makes pyarrow.compute's functions when it is imported.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


class Kind(StrEnum):
    """What a known column holds, in words for the user."""

    TEXT = "text (string)"
    TEXTS = "a list of text (list of string), or text"
    WHOLE = "whole numbers (an integer type)"


REQUIRED = "prompt"
KNOWN = {
    "prompt": Kind.TEXT,
    "prompt_id": Kind.TEXT,
    "image_urls": Kind.TEXTS,
    "aspect_ratio": Kind.TEXT,
    "resolution": Kind.TEXT,
    "response_modalities": Kind.TEXTS,
    "samples": Kind.WHOLE,
    "campaign": Kind.TEXT,
    "priority": Kind.WHOLE,
}
# pandas keeps an index that is more than a count under such a name: an artefact of storage, nobody's label.
_PANDAS_INDEX = "__index_level_"


def label_names(schema: pa.Schema) -> list[str]:
    """The columns that are nothing to us and are carried along as labels."""
    return [name for name in schema.names if name not in KNOWN and not name.startswith(_PANDAS_INDEX)]


def fits(kind: Kind, stored: pa.DataType) -> bool:
    """Whether a column of a kind may be stored as a type."""
    stored = _unwrapped(stored)
    if pt.is_null(stored):
        return True
    if kind is Kind.TEXT:
        return _is_text(stored)
    if kind is Kind.WHOLE:
        # pandas turns whole numbers into floats as soon as one is missing.
        return pt.is_integer(stored) or pt.is_floating(stored)
    return _is_text(stored) or (_is_list(stored) and fits(Kind.TEXT, stored.value_type))


@dataclass(frozen=True, slots=True)
class PlainBatch:
    """Consecutive rows of a file: the columns that are there, in plain types, and the rows' numbers, from 1."""

    row_numbers: npt.NDArray[np.int64]
    known: dict[str, pa.Array]
    labels: dict[str, pa.Array]

    @classmethod
    def of(cls, batch: pa.RecordBatch, first_row: int) -> Self:
        """A batch whose columns were found to fit. Raises `pyarrow.ArrowException` for what can't be converted."""
        return cls(
            row_numbers=np.arange(first_row, first_row + batch.num_rows),
            known={name: _READ[kind](batch.column(name)) for name, kind in KNOWN.items() if name in batch.schema.names},
            labels={name: plain(batch.column(name)) for name in label_names(batch.schema)},
        )

    def take(self, rows: npt.NDArray[np.intp]) -> Self:
        """Some of the rows, by position."""
        return type(self)(
            row_numbers=self.row_numbers[rows],
            known={name: array.take(pa.array(rows)) for name, array in self.known.items()},
            labels={name: array.take(pa.array(rows)) for name, array in self.labels.items()},
        )


def plain(array: pa.Array) -> pa.Array:
    """The array without dictionary or extension around it."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def lengths(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    """The number of entries of each list; null is an empty list."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _text(array: pa.Array) -> pa.StringArray:
    return plain(array).cast(pa.string())


def _texts(array: pa.Array) -> pa.ListArray:
    """Lists of strings; a bare string is a list of one, and an empty one is no list."""
    array = plain(array)
    if not _is_text(array.type):
        return array.cast(_LIST_OF_TEXT)
    text = _text(array)
    present = pc.fill_null(pc.not_equal(text, ""), fill_value=False)
    offsets = np.concatenate([[0], np.cumsum(present.to_numpy(zero_copy_only=False))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), text.filter(present), type=_LIST_OF_TEXT)


def _numbers(array: pa.Array) -> pa.NumericArray:
    """Whole numbers as they are; floats with NaN as null."""
    array = plain(array)
    # What is beyond 64 bits with a sign can be compared with nothing; it is out of any range, exact or not.
    if pt.is_integer(array.type) and not pt.is_uint64(array.type):
        return array
    floats = array.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(floats), pa.scalar(None, pa.float64()), floats)


_LIST_OF_TEXT = pa.list_(pa.string())
_READ: dict[Kind, Callable[[pa.Array], pa.Array]] = {Kind.TEXT: _text, Kind.TEXTS: _texts, Kind.WHOLE: _numbers}


def _unwrapped(stored: pa.DataType) -> pa.DataType:
    if isinstance(stored, pa.BaseExtensionType):
        stored = stored.storage_type
    return stored.value_type if pt.is_dictionary(stored) else stored


def _is_text(stored: pa.DataType) -> bool:
    return pt.is_string(stored) or pt.is_large_string(stored) or pt.is_string_view(stored)


def _is_list(stored: pa.DataType) -> bool:
    tests = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view)
    return any(is_a(stored) for is_a in tests)
