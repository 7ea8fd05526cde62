"""A torn or wrong image must never count: it would be paid for, reported as a success, and lost."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.storage.verification import BadImage, ImageFacts, VerifyMode, verify_image
from nanobanana_pipeline_tests.storage.pictures import encoded, picture, png_chunk


@dataclass(frozen=True)
class Limits:
    """Bounds small enough to be met in a test."""

    max_image_bytes: int = 2_000_000
    max_image_pixels: int = 1_000_000


WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("png", {}),
    "jpeg": ("jpeg", {"quality": 90}),
    "jpeg, subsampled": ("jpeg", {"quality": 75, "subsampling": 2}),
    "jpeg, progressive": ("jpeg", {"quality": 90, "progressive": True}),
    "jpeg, restart markers": ("jpeg", {"quality": 90, "restart_marker_rows": 1}),
    "webp": ("webp", {"quality": 80}),
    "webp, lossless": ("webp", {"lossless": True}),
    "gif": ("gif", {}),
    "avif": ("avif", {}),
}


def verify(data: bytes, mode: VerifyMode = "full", content_type: str | None = None) -> ImageFacts:
    """`verify_image` with this file's limits."""
    return verify_image(data, content_type=content_type, mode=mode, limits=Limits())


def refusal(data: bytes, mode: VerifyMode = "full", content_type: str | None = None) -> BadImage:
    """Why `data` is refused."""
    with pytest.raises(BadImage) as caught:
        verify(data, mode, content_type)
    return caught.value


@pytest.mark.parametrize("mode", ["full", "structure"])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_images_pass(name: str, mode: VerifyMode) -> None:
    """Refusing a good image throws away what was paid for."""
    kind, options = WHOLE[name]
    facts = verify(encoded(picture(97, 61), kind, **options), mode)
    assert (facts.format, facts.width, facts.height, facts.has_c2pa) == (kind, 97, 61, False)
    assert facts.ext == {"jpeg": "jpg"}.get(kind, kind)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (200, 3), (333, 517)])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_kind_of_jpeg_passes(mode: str, size: tuple[int, int], progressive: bool) -> None:  # noqa: FBT001
    """The way that torn JPEGs are found must not refuse odd but whole ones."""
    data = encoded(picture(*size, mode), "jpeg", progressive=progressive)
    assert (verify(data).width, verify(data).height) == size


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "avif"])
@given(where=st.floats(0.0, 0.999))
@settings(max_examples=30)
def test_an_image_cut_anywhere_is_refused(name: str, where: float) -> None:
    """Connections break at any byte; half a file must not pass for a picture."""
    kind, options = WHOLE[name]
    data = encoded(picture(), kind, **options)
    cut = data[: int(len(data) * where)]
    assert refusal(cut).reason in {"empty", "not_an_image", "truncated", "corrupt"}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_cut_image_is_refused_without_decoding(kind: str) -> None:
    """Even in a hurry, half a file is not a picture."""
    data = encoded(picture(), kind)
    assert refusal(data[: len(data) // 2], "structure").reason == "truncated"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}])
def test_a_cut_jpeg_with_an_end_marker_is_refused(options: dict[str, Any], share: float) -> None:
    """Some servers end what they lost: libjpeg then paints the rest grey and says nothing."""
    data = encoded(picture(320, 240), "jpeg", quality=90, **options)
    cut = data[: int(len(data) * share)] + b"\xff\xd9"
    with Image.open(io.BytesIO(cut)) as accepted_by_pillow:
        accepted_by_pillow.load()
    assert refusal(cut).reason == "truncated"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_png_passes(mode: str) -> None:
    """Palettes, transparency and sixteen bits are all pictures."""
    image = picture().quantize() if mode == "P" else picture(mode="I").convert(mode) if mode == "I;16" else None
    assert verify(encoded(image or picture(mode=mode), "png")).width == 96


def test_grey_pictures_are_not_taken_for_torn_ones() -> None:
    """A torn JPEG is grey where it is torn, but a whole one may be grey too."""
    grey = Image.new("RGB", (256, 256), (128, 128, 128))
    grey.paste((10, 200, 30), (0, 0, 16, 16))
    assert verify(encoded(grey, "jpeg")).width == 256
    assert verify(encoded(grey, "jpeg", progressive=True)).width == 256


def test_a_png_that_lost_whole_chunks_is_refused() -> None:
    """Each chunk may be in order and still some be missing: only decoding shows that."""
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(64)) * 3 for _ in range(64)))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    torn = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", pixels[: len(pixels) // 2])
        + png_chunk(b"IEND", b"")
    )
    assert verify(torn, "structure").width == 64
    assert refusal(torn).reason == "truncated"


def test_a_flipped_byte_in_a_png_is_refused() -> None:
    """PNG has checksums, so silent damage on the way can be known."""
    data = bytearray(encoded(picture(), "png"))
    data[len(data) // 2] ^= 0x40
    assert refusal(bytes(data), "structure").reason == "corrupt"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_blank_image_is_refused(kind: str, mode: str) -> None:
    """A provider that paints one colour has billed for nothing to look at."""
    assert refusal(encoded(Image.new(mode, (64, 64), 128), kind)).reason == "blank"


def test_an_invisible_image_is_refused() -> None:
    """Colours behind full transparency show nothing either."""
    hidden = picture(64, 64, "RGBA").copy()
    hidden.putalpha(0)
    assert refusal(encoded(hidden, "png")).reason == "blank"


def test_nearly_blank_is_not_blank() -> None:
    """One pixel that differs is content; the quick look at a few pixels must not decide alone."""
    dot = Image.new("RGB", (200, 200), (255, 255, 255))
    dot.putpixel((151, 77), (0, 0, 0))
    assert verify(encoded(dot, "png")).width == 200


def test_colours_of_one_brightness_are_not_blank() -> None:
    """Brightness is all that is decoded of most JPEGs; where it shows nothing, the colours are looked at."""
    bands = [Image.new("L", (64, 64), 128), Image.linear_gradient("L").resize((64, 64)), Image.new("L", (64, 64), 90)]
    data = encoded(Image.merge("YCbCr", bands), "jpeg", quality=95, subsampling=0)
    with Image.open(io.BytesIO(data)) as brightness:
        brightness.draft("L", None)
        assert brightness.getextrema() == (128, 128)
    assert verify(data).width == 64


def test_pixels_are_bounded_before_decoding() -> None:
    """A few bytes can claim gigapixels; decoding them would take the machine down."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + png_chunk(b"IEND", b"")
    )
    assert refusal(bomb).reason == "too_many_pixels"
    assert refusal(bomb, "structure").reason == "too_many_pixels"


def test_bytes_are_bounded() -> None:
    """The size cap holds whoever sends the bytes."""
    data = encoded(picture(), "png")
    with pytest.raises(BadImage) as caught:
        verify_image(data, content_type=None, mode="full", limits=Limits(max_image_bytes=len(data) - 1))
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    ("data", "content_type", "expected"),
    [
        (b"<!DOCTYPE html><title>502 Bad Gateway</title>", "text/html", "an HTML page"),
        (b"  <html>expired</html>", "image/png", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "application/xml", "an XML document"),
        (b'{"error": "not found"}', "application/json", "a JSON document"),
        (b"%PDF-1.7 and so on", None, "bytes that begin with"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "an XML document"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, content_type: str | None, expected: str) -> None:
    """An error page with status 200 is the commonest wrong image; the message should say so at once."""
    error = refusal(data, content_type=content_type)
    assert error.reason == "not_an_image"
    assert expected in str(error)


def test_an_empty_download_is_named() -> None:
    """No bytes at all deserve a word of their own."""
    assert refusal(b"").reason == "empty"


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", "text/html", "", None])
def test_a_wrong_content_type_is_forgiven(content_type: str | None) -> None:
    """Storage services label files as they like; a picture that was paid for is kept for what it is."""
    assert verify(encoded(picture(), "png"), content_type=content_type).format == "png"


def test_messages_are_one_printable_line() -> None:
    """They go into tables and onto terminals, and a content type is the other side's text."""
    message = str(refusal(b"<html>", content_type="text/html\r\n\x1b[31mred"))
    assert message.isprintable()


def with_c2pa(kind: str) -> bytes:
    """A picture with a (hollow) C2PA manifest where its format keeps one."""
    data = encoded(picture(), kind)
    box = b"\x00\x00\x00\x20jumb\x00\x00\x00\x18jumdc2pa" + bytes(12)
    if kind == "png":
        return data[:33] + png_chunk(b"caBX", box) + data[33:]
    if kind == "jpeg":
        body = b"JP\x00\x01\x00\x00\x00\x01" + box
        return data[:2] + b"\xff\xeb" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
    chunk = b"C2PA" + len(box).to_bytes(4, "little") + box
    return data[:4] + (len(data) - 8 + len(chunk)).to_bytes(4, "little") + data[8:] + chunk


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_content_credentials_are_seen(kind: str) -> None:
    """Whoever publishes the pictures must know which carry provenance."""
    assert verify(with_c2pa(kind)).has_c2pa
    assert verify(with_c2pa(kind), "structure").has_c2pa


def test_data_behind_the_end_marker_is_tolerated() -> None:
    """Phones and CDNs append to JPEGs; the picture before it is whole."""
    assert verify(encoded(picture(), "jpeg") + b"appended" + encoded(picture(), "jpeg")[:99]).format == "jpeg"
    assert verify(encoded(picture(), "png") + b"appended").format == "png"


def test_a_thumbnail_inside_does_not_end_the_picture() -> None:
    """An EXIF thumbnail is a whole JPEG with an end marker of its own."""
    data = encoded(picture(), "jpeg")
    body = b"Exif\0\0" + encoded(picture(16, 16), "jpeg")
    nested = data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
    assert verify(nested).width == 96


def test_a_model_specs_limits_serve() -> None:
    """The engine hands over the spec's limits as they are."""
    limits = load_spec().limits
    assert verify_image(encoded(picture(), "webp"), content_type="image/webp", mode="full", limits=limits).width == 96


@given(st.sampled_from(["png", "jpeg", "webp", "gif"]), st.data())
@settings(max_examples=150)
def test_damaged_bytes_never_escape_as_other_errors(kind: str, data: st.DataObject) -> None:
    """Whatever arrives, the engine needs a verdict: an unforeseen exception would end its run."""
    whole = bytearray(encoded(picture(24, 24), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for mode in ("full", "structure"):
        try:
            assert verify(bytes(whole), mode).width >= 1
        except BadImage:
            continue
