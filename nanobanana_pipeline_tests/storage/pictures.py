"""Encoded pictures for the tests of this folder, made by real encoders."""

import functools
import io
import random
import zlib
from typing import Any

from PIL import Image


@functools.cache
def picture(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    """A picture with broad shapes and some grain, as a photo has. To be changed in a copy only."""
    draws = random.Random(f"{width}x{height}")
    coarse = Image.frombytes("RGB", (8, 8), draws.randbytes(192)).resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.frombytes("RGB", (width, height), draws.randbytes(width * height * 3))
    return Image.blend(coarse, grain, 0.08).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """`image` as a file of the format `kind`."""
    sink = io.BytesIO()
    image.save(sink, kind.upper(), **options)
    return sink.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file, with its length and checksum."""
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
