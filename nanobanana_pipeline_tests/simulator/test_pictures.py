"""Pictures: real, repeatable, of the right size, with any text at all, and quickly made."""

import io
import time

import pytest
from PIL import Image

from nanobanana_pipeline.simulator.pictures import Format, PictureOrder, bomb, choose_format, draw

TEXTS = [
    "a red fox",
    "日本の庭園、秋",
    "صورة لغزال في الصحراء",
    "🦊👩‍👩‍👧‍👦🏳️‍🌈",
    "é" * 2500,
    "x" * 2500,
    "word " * 500,
    "\x00\x01\n\t\u202e\u200b\ufeff\U000e0001",
    "e\u0301\u0302\u0303" * 100,
    " ",
    "\ud7ff\ue000\uffff\U0010ffff",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [(1024, 1024), (192, 1536), (1536, 192)])
def test_any_text_can_be_written(text: str, size: tuple[int, int]) -> None:
    """Catalogues hold every script there is; none may cost the provider an error 500."""
    picture = draw(PictureOrder("1", text, *size, "PNG"))

    with Image.open(io.BytesIO(picture.data)) as image:
        image.load()
        assert image.size == size
        assert len(image.getcolors(10_000_000) or []) > 100


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_same_order_gives_the_same_bytes(form: Format) -> None:
    """Determinism, byte for byte, in each format."""
    order = PictureOrder("7/abc/0", "a red fox", 640, 480, form)
    picture = draw(order)

    assert draw(order).data == picture.data
    with Image.open(io.BytesIO(picture.data)) as image:
        image.load()
        assert (image.format, image.size) == (form, (640, 480))


def test_pictures_differ_by_chance_and_by_text() -> None:
    """A gallery of one picture is no gallery."""
    orders = [PictureOrder(f"{chance}", text, 64, 64, "PNG") for chance in range(10) for text in ("one", "two")]

    assert len({draw(order).data for order in orders}) == 20


def test_formats_are_mixed_and_large_pictures_are_jpeg() -> None:
    """Clients that trust a suffix or know only PNG must meet the others."""
    small = [choose_format(f"{number}", 1024, 1024) for number in range(200)]

    assert {"PNG", "JPEG", "WEBP"} == set(small)
    assert {choose_format(f"{number}", 4096, 4096) for number in range(50)} == {"JPEG"}


@pytest.mark.parametrize("target", [50_000, 277_000, 1_800_000])
def test_padding_reaches_the_size_and_stays_decodable(target: int) -> None:
    """Benchmarks are about bytes; the bytes must still be a picture."""
    picture = draw(PictureOrder("1", "a", 256, 256, "JPEG", padded_to=target))

    assert len(picture.data) == target
    with Image.open(io.BytesIO(picture.data)) as image:
        image.load()


def test_a_4k_picture_is_made_in_seconds_at_most() -> None:
    """A demo in 4K must not stand still; generous, as other things run on this machine."""
    start = time.process_time()
    draw(PictureOrder("1", "a lighthouse at dusk " * 30, 5504, 3072, "JPEG"))

    assert time.process_time() - start < 5


def test_a_bomb_is_valid() -> None:
    """A decoder would really unpack it; a small one is unpacked here to prove it."""
    picture = bomb(1)

    with Image.open(io.BytesIO(picture.data)) as image:
        image.load()
        assert image.size == (25_000, 40)
