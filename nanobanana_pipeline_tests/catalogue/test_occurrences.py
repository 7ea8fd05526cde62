"""Counting keys over more batches than fit into memory."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue import occurrences
from nanobanana_pipeline.catalogue.occurrences import Occurrence, Occurrences


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8), max_size=30))
def test_counts_like_a_counter(batches: list[list[str]]) -> None:
    """However keys fall into batches, each is counted once for every time it is given, and its first place kept."""
    tally, seen, first, place = Occurrences(), Counter[str](), dict[str, int](), 0
    for keys in batches:
        places = range(place, place + len(keys))
        expected: dict[int, Occurrence] = {}
        for position, key in enumerate(keys):
            seen[key] += 1
            first.setdefault(key, places[position])
            if seen[key] > 1:
                expected[position] = Occurrence(seen[key], first[key])
        assert tally.tally(keys, places) == expected
        place += len(keys)


def test_merged_runs_forget_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are merged as they grow, up to a length; what is in the middle of one must still be found."""
    monkeypatch.setattr(occurrences, "_LONGEST_RUN", 64)
    tally = Occurrences()
    for start in range(0, 1000, 10):
        assert tally.tally([str(n) for n in range(start, start + 10)], range(start, start + 10)) == {}
    again = tally.tally([str(n) for n in range(1000)], range(1000, 2000))
    assert again == {n: Occurrence(2, n) for n in range(1000)}


def test_nothing_is_nothing() -> None:
    """A batch without a key leaves no mark."""
    assert Occurrences().tally([], []) == {}
