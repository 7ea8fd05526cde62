"""Counts how often a key came before, over any number of keys, in bounded memory.

What is known of the keys lies in sorted runs on disk, in files without a name, which vanish by themselves even
after a kill. A key is known by its 64-bit hash, keyed anew in each process: of forty million catalogues with a million
keys each, one would see two keys taken for one.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Runs are merged up to this many keys, so that a merge takes some 150 MB at most.
_LONGEST_RUN = 1 << 21

_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """The `ordinal`-th time (1: the first) that a key was given; `first_place` is where it was given first."""

    ordinal: int
    first_place: int


@dataclass(slots=True)
class _Run:
    """Distinct keys in order, on disk, and how often and where first each was given."""

    keys: _Numbers
    times: _Numbers
    places: _Numbers

    @classmethod
    def stored(cls, keys: _Numbers, times: _Numbers, places: _Numbers) -> "_Run":
        return cls(_on_disk(keys), _on_disk(times), _on_disk(places))

    @classmethod
    def merged(cls, one: "_Run", other: "_Run") -> "_Run":
        keys = np.concatenate([one.keys, other.keys])
        order = np.argsort(keys, kind="stable")
        times, places = np.concatenate([one.times, other.times]), np.concatenate([one.places, other.places])
        return cls.stored(keys[order], times[order], places[order])

    def find(self, keys: _Numbers) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
        """Which of some keys are in the run, and where those that are."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        hit = self.keys[at] == keys
        return hit, at[hit]


class Occurrences:
    """A tally of keys."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def tally(self, keys: Sequence[str], places: Iterable[int]) -> dict[int, Occurrence]:
        """Count a batch of keys, each with its place; gives the positions (in `keys`) of those that came before."""
        if not keys:
            return {}
        hashes = np.fromiter(map(hash, keys), dtype=np.int64, count=len(keys))
        distinct, first, which, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        places_given = np.fromiter(places, dtype=np.int64, count=len(keys))
        before, first_places = np.zeros(len(distinct), dtype=np.int64), places_given[first]
        for run in self._runs:
            hit, at = run.find(distinct)
            before[hit], first_places[hit] = run.times[at], run.places[at]
            run.times[at] += counts[hit]
        new = before == 0
        if new.any():
            self._add(_Run.stored(distinct[new], counts[new].astype(np.int64), first_places[new]))
        if new.all() and len(distinct) == len(keys):
            return {}
        return _repeats(which, before, first_places)

    def _add(self, run: _Run) -> None:
        while self._runs and len(self._runs[-1].keys) <= 2 * len(run.keys) <= _LONGEST_RUN:
            run = _Run.merged(self._runs.pop(), run)
        self._runs.append(run)


def _repeats(which: npt.NDArray[np.intp], before: _Numbers, first_places: _Numbers) -> dict[int, Occurrence]:
    times = before.tolist()
    again: dict[int, Occurrence] = {}
    for position, key in enumerate(which.tolist()):
        times[key] += 1
        if times[key] > 1:
            again[position] = Occurrence(times[key], int(first_places[key]))
    return again


def _on_disk(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with tempfile.TemporaryFile() as file:
        file.write(array.tobytes())
        file.flush()
        return np.memmap(file, dtype=array.dtype, mode="r+", shape=array.shape)
