"""Small WebP pictures of images, made once and kept under `thumbnails/` by the hash of the image they show.

They are made from what the pipeline stored and can be deleted at any time: the next report makes them again. Which
images are shown where is for `contact_sheet` and `gallery`.
"""

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from PIL import Image, UnidentifiedImageError

from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.storage.images import ImageStore

THUMBNAILS: Final = "thumbnails"
"""The folder of the thumbnails, under the output."""

SIDE: Final = 320
"""The longer side of a thumbnail, in pixels, unless the shorter would fall below `LEAST_SIDE`."""
LEAST_SIDE: Final = 240
"""About the height of a row in the gallery: a strip of 8 to 1 would be a blur at 40 pixels."""
_MOST_SIDE: Final = 8 * LEAST_SIDE
_QUALITY: Final = 72
_CHUNK: Final = 256
_MOST_THREADS: Final = 8
# What Pillow's decoders raise for torn files, and what a missing file or a path out of the output raises.
_UNREADABLE: Final = (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Pictured:
    """An image file, as the ledger names it."""

    path: str
    sha256: str


def thumbnail_path(sha256: str) -> str:
    """Where the thumbnail of an image with this hash is, relative to the output."""
    return f"{THUMBNAILS}/{sha256[:2]}/{sha256}.webp"


def existing(store: ImageStore) -> set[str]:
    """The hashes of the images that have a thumbnail, by one listing: a remote store is slow to be asked for each."""
    filesystem, base = open_uri(f"{store.root.rstrip('/')}/{THUMBNAILS}")
    filesystem.invalidate_cache(base)
    return {
        path.rpartition("/")[2].removesuffix(".webp")
        for path, entry in filesystem.find(base, detail=True).items()
        if path.endswith(".webp") and entry["size"]
    }


def make_missing(store: ImageStore, images: Iterable[Pictured]) -> Iterator[tuple[Pictured, bool]]:
    """Make what thumbnails are missing, in threads; yields each image and whether it has one now, in order.

    An image whose file is gone or can't be decoded has none: a report is no place to fail for that.
    """
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="thumbnail") as pool:
        remaining = iter(images)
        while chunk := list(islice(remaining, _CHUNK)):
            yield from zip(chunk, pool.map(partial(_ensure, store), chunk), strict=True)


def read_thumbnail(store: ImageStore, image: Pictured) -> Image.Image | None:
    """The thumbnail of an image, decoded, and made anew where a copy of the output tore it; None if that can't be."""
    try:
        return _decoded(store, image)
    except _UNREADABLE:
        return _decoded(store, image) if _make(store, image) else None


def _decoded(store: ImageStore, image: Pictured) -> Image.Image:
    picture = Image.open(io.BytesIO(store.read(thumbnail_path(image.sha256))), formats=("WEBP",))
    return picture.convert("RGBA")


def _ensure(store: ImageStore, image: Pictured) -> bool:
    return store.exists(thumbnail_path(image.sha256)) or _make(store, image)


def _make(store: ImageStore, image: Pictured) -> bool:
    try:
        store.write(thumbnail_path(image.sha256), _thumbnail(store.read(image.path)))
    except _UNREADABLE:
        return False
    return True


def _thumbnail(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        longer, shorter = max(picture.size), min(picture.size)
        shrink = min(1.0, max(SIDE / longer, LEAST_SIDE / shorter), _MOST_SIDE / longer)
        width, height = (max(1, round(side * shrink)) for side in picture.size)
        # A JPEG can be decoded at a fraction of its size, which saves most of the time.
        picture.draft("RGB", (2 * width, 2 * height))
        picture.thumbnail((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        small = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        written = io.BytesIO()
        small.save(written, "WEBP", quality=_QUALITY, method=3)
    return written.getvalue()
