"""Identity of items and requests: what past ledgers and file names depend on."""

import json
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue.identity import Request, item_id, request_hash, safe_name
from nanobanana_pipeline.model_specs.loader import load_spec

SPEC = load_spec()
PLAIN = Request(model="nano_banana_2", prompt="a fox")
parts = st.tuples(st.text(), st.text(), st.integers(1, 1000))
requests = st.builds(
    Request,
    model=st.just("nano_banana_2"),
    prompt=st.text(min_size=1),
    image_urls=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    aspect_ratio=st.none() | st.sampled_from(SPEC.aspect_ratios),
    resolution=st.none() | st.sampled_from(SPEC.resolutions),
    response_modalities=st.none() | st.sampled_from([("Image",), ("Text", "Image"), ("Image", "Text")]),
)


def test_identity_never_changes() -> None:
    """Fixed for good: another value would make every ledger forget what it has paid for."""
    assert request_hash(PLAIN, SPEC) == "dc24ec63dea11aaa1bed0f85a5a94670"
    assert item_id("spring", "fox-1", 1) == "ac8d5a8360367b136ea5efed7d8f2469"
    assert safe_name("fox/1") == "fox_1-75d2bd2e"


@given(parts, parts)
def test_item_id_is_injective(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    """Two items with one id would share one image and one bill."""
    assume(one != other)
    assert item_id(*one) != item_id(*other)


def test_item_id_keeps_parts_apart() -> None:
    """Joined without lengths, these would be the same item."""
    assert item_id("a", "bc", 1) != item_id("ab", "c", 1)
    assert item_id("a", "b", 11) != item_id("a", "b1", 1)
    assert item_id("a", "1:b", 1) != item_id("a1:", "b", 1)


@given(st.text(st.characters(codec=None)))
def test_any_string_is_a_prompt_id(prompt_id: str) -> None:
    """Ids come from other people's systems: emoji, slashes and lone surrogates too."""
    assert re.fullmatch("[0-9a-f]{32}", item_id("spring", prompt_id, 1))


@pytest.mark.parametrize(
    "same",
    [
        PLAIN._replace(image_urls=()),
        PLAIN._replace(aspect_ratio=""),
        PLAIN._replace(resolution=""),
        PLAIN._replace(resolution="1K"),
        PLAIN._replace(response_modalities=()),
        PLAIN._replace(response_modalities=("Text", "Image")),
        PLAIN._replace(response_modalities=("Image", "Text", "Image")),
    ],
)
def test_empty_absent_and_default_are_one_request(same: Request) -> None:
    """Writing a default out, or leaving a cell empty, must not pay for the picture again."""
    assert request_hash(same, SPEC) == request_hash(PLAIN, SPEC)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN._replace(prompt="a fox "),
        PLAIN._replace(aspect_ratio="1:1"),
        PLAIN._replace(resolution="2K"),
        PLAIN._replace(response_modalities=("Image",)),
        PLAIN._replace(image_urls=("https://example.com/a.png",)),
        PLAIN._replace(model="other"),
    ],
)
def test_what_changes_the_picture_changes_the_hash(other: Request) -> None:
    """An edited row is a new request; taken for the old one it would keep a wrong picture."""
    assert request_hash(other, SPEC) != request_hash(PLAIN, SPEC)


def test_order_of_input_images_matters() -> None:
    """Put the first onto the second: that is another picture when they are swapped."""
    one, two = "https://example.com/1.png", "https://example.com/2.png"
    assert request_hash(PLAIN._replace(image_urls=(one, two)), SPEC) != request_hash(
        PLAIN._replace(image_urls=(two, one)), SPEC
    )


@given(requests)
def test_json_round_trip(request: Request) -> None:
    """The ledger replays requests from this JSON when the catalogue is long gone."""
    assert Request.from_json(request.to_json()) == request
    assert None not in json.loads(request.to_json()).values()


@given(requests)
def test_canonical_is_sorted_json(request: Request) -> None:
    """Readable by anyone, and independent of the order in which it was written."""
    canonical = json.loads(request.canonical(SPEC))
    assert list(canonical) == sorted(canonical)
    assert canonical["prompt"] == request.prompt
    assert canonical["resolution"] == (request.resolution or "1K")


@pytest.mark.parametrize("name", ["fox-1", "Spring_2026.v2", "a", "0"])
def test_safe_names_stay_readable(name: str) -> None:
    """A person must find an image by its prompt_id."""
    assert safe_name(name) == name


@given(st.text(st.characters(codec=None)), st.integers(16, 80))
def test_safe_name_is_safe(text: str, limit: int) -> None:
    """A prompt_id can't climb out of its folder, hide a file, or break a partition key."""
    name = safe_name(text, limit)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name)
    assert len(name) <= limit
    assert ".." not in name
    assert not name.endswith(".")


@given(st.text(alphabet="ab/._-\u00e9", max_size=6), st.text(alphabet="ab/._-\u00e9", max_size=6))
def test_safe_name_is_injective(one: str, other: str) -> None:
    """`a/b` and `a_b` are two prompts: their files must not meet."""
    assume(one != other)
    assert safe_name(one) != safe_name(other)


@given(st.text())
def test_safe_name_of_a_safe_name_is_not_taken(text: str) -> None:
    """A prompt_id that looks like another's safe name must not get its file."""
    name = safe_name(text)
    assert name == text or safe_name(name) != name
