"""Pictures: painted by chance that can be had again, captioned, encoded as the provider would; and the spoiled kinds.

Nothing here knows of tasks or HTTP. Drawing takes tens of milliseconds, so it runs in threads (`Studio`), never on the
event loop.
"""

import asyncio
import io
import math
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image

from nanobanana_pipeline.simulator.caption import write_caption
from nanobanana_pipeline.simulator.draws import fraction
from nanobanana_pipeline.simulator.painting import paint

Format = Literal["PNG", "JPEG", "WEBP"]

EXTENSIONS: dict[Format, str] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
MEDIA_TYPES: dict[Format, bytes] = {"PNG": b"image/png", "JPEG": b"image/jpeg", "WEBP": b"image/webp"}

_MADE_BY = "simulated by nanobanana_pipeline"
_PNG_MOST_PIXELS = 2_000_000  # above this, PNG takes a second to encode
_CACHE_BYTES = 64_000_000
_JPEG_SEGMENT_MOST = 65_535
_JPEG_SEGMENT_LEAST = 4
_BOMB_WIDTH = 25_000


@dataclass(frozen=True, slots=True)
class PictureOrder:
    """All that decides a picture, byte for byte."""

    chance: str
    caption: str
    width: int
    height: int
    format: Format
    padded_to: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture."""

    data: bytes
    format: Format

    @property
    def media_type(self) -> bytes:
        """Its Content-Type."""
        return MEDIA_TYPES[self.format]


def choose_format(chance: str, width: int, height: int) -> Format:
    """The format the provider happens to use: PNG or JPEG, now and then WebP; JPEG for the large."""
    if width * height > _PNG_MOST_PIXELS:
        return "JPEG"
    draw = fraction(chance, "format")
    if draw < 0.5:
        return "PNG"
    return "JPEG" if draw < 0.95 else "WEBP"


def draw(order: PictureOrder) -> Picture:
    """Draw and encode a picture."""
    painting = paint(order.chance, order.width, order.height)
    write_caption(painting, order.caption)
    return Picture(_pad(_encode(painting, order.format), order), order.format)


class Studio:
    """Draws in threads and keeps the latest pictures, as clients come back for the same one."""

    def __init__(self, threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="studio")
        self._kept: OrderedDict[PictureOrder, Picture] = OrderedDict()
        self._kept_bytes = 0
        self._being_drawn: dict[PictureOrder, asyncio.Future[Picture]] = {}

    async def picture(self, order: PictureOrder) -> Picture:
        """The picture for an order, drawn once however many ask for it."""
        kept = self._kept.get(order)
        if kept is not None:
            self._kept.move_to_end(order)
            return kept
        drawing = self._being_drawn.get(order)
        if drawing is None:
            drawing = asyncio.get_running_loop().run_in_executor(self._threads, draw, order)
            self._being_drawn[order] = drawing
            drawing.add_done_callback(lambda done: self._keep(order, done))
        return await asyncio.shield(drawing)

    async def in_thread(self, work: Callable[[], Picture]) -> Picture:
        """Any other work on pictures."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _keep(self, order: PictureOrder, done: "asyncio.Future[Picture]") -> None:
        self._being_drawn.pop(order, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._kept[order] = done.result()
        self._kept_bytes += len(done.result().data)
        while self._kept_bytes > _CACHE_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1].data)


def _encode(painting: Image.Image, form: Format) -> bytes:
    target = io.BytesIO()
    if form == "PNG":
        painting.save(target, "PNG", compress_level=1)
    elif form == "WEBP":
        painting.save(target, "WEBP", quality=80, method=0)
    else:
        painting.save(target, "JPEG", quality=88, comment=_MADE_BY)
    return target.getvalue()


def _pad(data: bytes, order: PictureOrder) -> bytes:
    """Fill up to the wanted number of bytes with JPEG comments, which decoders skip."""
    missing = 0 if order.padded_to is None else order.padded_to - len(data)
    filler = bytearray()
    while missing >= _JPEG_SEGMENT_LEAST:
        length = min(missing - 2, _JPEG_SEGMENT_MOST)
        filler += b"\xff\xfe" + struct.pack(">H", length) + bytes(length - 2)
        missing -= length + 2
    return data[:2] + bytes(filler) + data[2:] if filler else data


def solid(width: int, height: int) -> Picture:
    """A picture of one colour."""
    target = io.BytesIO()
    Image.new("RGB", (width, height), (127, 127, 127)).save(target, "PNG")
    return Picture(target.getvalue(), "PNG")


@lru_cache(maxsize=2)
def bomb(megapixels: int) -> Picture:
    """A valid PNG of a few dozen kilobytes that decodes to that many million black pixels."""
    height = max(1, megapixels * 1_000_000 // _BOMB_WIDTH)
    row = b"\0" + bytes(math.ceil(_BOMB_WIDTH / 8))
    packer = zlib.compressobj(9)
    packed = bytearray()
    for _ in range(height):
        packed += packer.compress(row)
    packed += packer.flush()
    header = struct.pack(">IIBBBBB", _BOMB_WIDTH, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", bytes(packed)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return Picture(data, "PNG")
