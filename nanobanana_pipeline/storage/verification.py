"""Whether the bytes a provider sent are a whole, usable image. Pure: nothing here touches a disk or a network.

A torn image that passes has been paid for and lost without a word, so each format's own structure is walked, and in
`full` mode every pixel is decoded (of most JPEGs its brightness). Sizes are bounded and reported, never judged against
the request: a picture of another size than asked for was paid for all the same.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from PIL import Image

from nanobanana_pipeline.storage import structure
from nanobanana_pipeline.storage.structure import BadImage, Shape

__all__ = ["BadImage", "ImageFacts", "ImageLimits", "VerifyMode", "format_of", "verify_image"]

VerifyMode = Literal["full", "structure"]

_EXTENSIONS: Final[Mapping[str, str]] = {"png": "png", "jpeg": "jpg", "webp": "webp", "gif": "gif", "avif": "avif"}
_JPEG_END: Final = b"\xff\xd9"

# Stand-ins for what a JPEG should still have had. The first is read as bits but never completes a picture; the others
# differ, and hold no 0xFF that could be taken for a marker.
_JPEG_REST: Final = bytes(8)
_JPEG_FILLINGS: Final = (bytes((i * 37 + 11) % 251 for i in range(256)), bytes((i * 101 + 5) % 253 for i in range(256)))


class ImageLimits(Protocol):
    """What an image may be at most; a model spec's limits are such."""

    @property
    def max_image_bytes(self) -> int:
        """The size of the file."""
        ...

    @property
    def max_image_pixels(self) -> int:
        """Width times height."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image is. `ext` has no dot; `has_c2pa`: content credentials are there, valid or not."""

    format: str
    ext: str
    width: int
    height: int
    has_c2pa: bool


def verify_image(data: bytes, *, content_type: str | None, mode: VerifyMode, limits: ImageLimits) -> ImageFacts:
    """The facts of a good image; raises `BadImage` for any other bytes.

    `structure` checks the header, the size, every chunk or segment and the end marker; `full` decodes every pixel too
    and refuses blank pictures. The bytes decide what they are: `content_type` is only quoted, as hosts get it wrong.
    """
    if not data:
        raise BadImage("empty", "the download was empty")
    if len(data) > limits.max_image_bytes:
        raise BadImage("too_large", f"{len(data)} bytes, more than the {limits.max_image_bytes} allowed")
    kind = format_of(data)
    if kind is None:
        raise BadImage("not_an_image", _what_came_instead(data, content_type))
    shape = _shape(data, kind)
    if shape.width < 1 or shape.height < 1:
        raise BadImage("corrupt", f"the {kind} image is {shape.width}x{shape.height} pixels")
    # Before anything is decoded: a few kilobytes can claim gigapixels.
    if shape.width * shape.height > limits.max_image_pixels:
        raise BadImage(
            "too_many_pixels", f"{shape.width}x{shape.height} pixels, more than the {limits.max_image_pixels} allowed"
        )
    # GIF and AVIF are not what this provider sends; no structure check of ours knows them, so they are always decoded.
    if mode == "full" or kind not in structure.WALKS:
        picture = _decoded(data, kind, shape)
        if picture.size != (shape.width, shape.height):
            raise BadImage("corrupt", f"its header says {shape.width}x{shape.height}, its pixels {picture.size}")
        if _blank(picture) and _blank(_load(data, kind)):
            raise BadImage("blank", "every pixel has the same colour")
    return ImageFacts(kind, _EXTENSIONS[kind], shape.width, shape.height, shape.has_c2pa)


def format_of(data: bytes) -> str | None:
    """The image format that the first bytes announce: png, jpeg, webp, gif or avif; None when they announce none."""
    if data.startswith(structure.PNG_SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in {b"GIF87a", b"GIF89a"}:
        return "gif"
    if data[4:8] == b"ftyp" and data[8:12] in {b"avif", b"avis"}:
        return "avif"
    return None


def _what_came_instead(data: bytes, content_type: str | None) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        what = "an HTML page"
    elif start.startswith((b"<?xml", b"<error", b"<svg")):
        what = "an XML document"
    elif start.startswith((b"{", b"[")):
        what = "a JSON document"
    else:
        what = f"{len(data)} bytes that begin with {data[:8].hex()}"
    declared = "".join(character for character in content_type or "nothing" if character.isprintable())[:80]
    return f"not an image but {what} (declared as {declared})"


def _shape(data: bytes, kind: str) -> Shape:
    walk = structure.WALKS.get(kind)
    if walk is not None:
        return walk(data)
    with _pillow(data, kind) as picture:
        return Shape(*picture.size, has_c2pa=kind == "avif" and b"c2pa" in data)


def _pillow(data: bytes, kind: str) -> Image.Image:
    try:
        # One format only: whatever else the bytes may also be is never tried.
        return Image.open(io.BytesIO(data), formats=(kind.upper(),))
    except Image.DecompressionBombError:
        raise BadImage("too_many_pixels", "more pixels than a picture can have") from None
    except Exception as error:  # a decoder fed with torn bytes raises whatever it likes  # noqa: BLE001
        raise BadImage("corrupt", f"the {kind} image can't be opened: {error}") from None


def _decoded(data: bytes, kind: str, shape: Shape) -> Image.Image:
    """Every pixel, if need be without its colour, or `BadImage`."""
    if kind != "jpeg":
        return _load(data, kind)
    picture_end = shape.end - len(_JPEG_END)
    if shape.scans == 1:
        # At an early end marker libjpeg paints the rest grey and only warns, which Pillow doesn't pass on. Without the
        # marker it waits for data that never come, and Pillow calls that truncated. All colours lie in the one scan,
        # interleaved: a decoder asked for the brightness alone reads them all the same, and takes 40 % less CPU.
        return _load(data[:picture_end] + _JPEG_REST, kind, mode="L")
    # A picture of several scans isn't drawn before the end marker. So its last scan is filled up in two ways: bytes
    # behind a whole scan are skipped, and only a scan that lacks some would decode them, to two pictures.
    first, second = (_load(data[:picture_end] + filling + _JPEG_END, kind) for filling in _JPEG_FILLINGS)
    if first.tobytes() != second.tobytes():
        raise BadImage("truncated", "the jpeg image ends in the middle of its last scan")
    return first


def _load(data: bytes, kind: str, *, mode: str | None = None) -> Image.Image:
    picture = _pillow(data, kind)
    try:
        picture.draft(mode, None)
        picture.load()
    except Exception as error:  # a decoder fed with torn bytes raises whatever it likes  # noqa: BLE001
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise BadImage(reason, f"the {kind} image can't be decoded: {error}") from None
    return picture


def _blank(picture: Image.Image) -> bool:
    # A few pixels clear nearly every picture, at a hundredth of the cost of looking at all of them.
    sample = picture.resize((8, 8), Image.Resampling.NEAREST)
    return _uniform(sample) and _uniform(picture)


def _uniform(picture: Image.Image) -> bool:
    bands: dict[str, tuple[float, float]] = dict(zip(picture.getbands(), _extrema(picture), strict=True))
    invisible = bands.get("A") == (0, 0)
    return invisible or all(low == high for low, high in bands.values())


def _extrema(picture: Image.Image) -> list[tuple[float, float]]:
    extrema = picture.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]  # pyright: ignore[reportReturnType]
