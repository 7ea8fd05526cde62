"""Names of shards."""

from hypothesis import assume, given
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue.sharding import shard_key


def test_keys_read_well() -> None:
    """People choose shards by name in Dagster's pages."""
    assert shard_key("spring", 12) == "spring-000012"
    assert shard_key("spring", 1_234_567) == "spring-1234567"


@given(st.text(), st.integers(0, 10**7))
def test_keys_are_safe(catalogue: str, number: int) -> None:
    """Dagster takes a comma for two keys, and refuses dots in a row and control characters."""
    key = shard_key(catalogue, number)
    assert key.isascii()
    assert key.isprintable()
    assert "," not in key
    assert "/" not in key
    assert "..." not in key


@given(st.text("ab, .-0_", max_size=8), st.text("ab, .-0_", max_size=8), st.integers(0, 20), st.integers(0, 20))
def test_keys_never_meet(one: str, other: str, number: int, other_number: int) -> None:
    """Two catalogues whose names look alike in a path must not share a shard."""
    assume((one, number) != (other, other_number))
    assert shard_key(one, number) != shard_key(other, other_number)
