"""A look at what was made: one small picture of many images, light enough to be kept in Dagster's event log for good.

The markdown holds a picture of at most a few kilobytes and the path of a larger one beside the images. Which images are
current is the ledger's word; thumbnails come from `thumbnails`.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
import sqlalchemy as sa
from PIL import Image, ImageOps

from nanobanana_pipeline.catalogue.identity import safe_name
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.reporting.figures import Scope, image_count, is_current
from nanobanana_pipeline.reporting.glance import INLINE_CHARS
from nanobanana_pipeline.reporting.thumbnails import Pictured, make_missing, read_thumbnail

MARKDOWN_BYTES: Final = 10_000
"""Metadata stays in the event log for good, so a sheet in it must stay small."""

# Made once a shard: at 120 pictures of 200 pixels it cost as much as all the requests for a third of its items.
_FULL_SHEET_IMAGES: Final = 48
_FULL_CELL: Final = 160
_FULL_COLUMNS: Final = 8
_GAP: Final = 4
_GREY: Final = (128, 128, 128)
"""The ground of the larger sheet, for pictures and pages light and dark. A transparent one of its size takes 16 MB to
encode, which is ten times as much, and four shards may end at once."""
# Images, columns, side of a cell and quality of the small sheet, best first: the first that is light enough is taken.
_LADDER: Final = (
    (24, 8, 88, 50),
    (24, 8, 88, 32),
    (18, 6, 88, 32),
    (18, 6, 72, 28),
    (14, 7, 72, 24),
    (12, 6, 64, 20),
    (8, 4, 64, 20),
    (4, 4, 48, 10),
)
# The same for the strip, which has a tenth of the room.
_STRIP_LADDER: Final = (
    *((6, 6, 48, 20), (6, 6, 48, 8), (6, 6, 48, 1)),
    *((4, 4, 48, 8), (4, 4, 48, 1), (4, 4, 40, 1), (3, 3, 32, 1)),
)


@dataclass(frozen=True, slots=True)
class ContactSheet:
    """`markdown` (less than 10 kB) shows some images; `path`, relative to the output, is a larger picture of more.

    `strip` shows a few, in markdown so short that Dagster shows it without a click. `images` is how many current images
    there are; without any, `path` is None.
    """

    markdown: str
    strip: str
    path: str | None
    images: int


def contact_sheet(workspace: Workspace, shard: str | None = None, *, catalogue: str | None = None) -> ContactSheet:
    """The sheet of a shard, a catalogue, or everything; missing thumbnails of the images on it are made."""
    total, chosen = _choose(workspace, Scope(catalogue=catalogue, shard=shard))
    store = workspace.images
    # Each made small as it is read: as they are, they take 20 MB, and four shards may end at once.
    pictures = [
        ImageOps.fit(picture, (_FULL_CELL, _FULL_CELL))
        for image, there in make_missing(store, chosen)
        if there and (picture := read_thumbnail(store, image)) is not None
    ]
    if not pictures:
        return ContactSheet("No images yet.", "No images yet.", None, total)
    path = f"sheets/{safe_name(shard or catalogue or 'all')}.webp"
    caption = f"{total:,} image{'s' * (total != 1)}"
    store.write(path, _sheet(pictures, _FULL_COLUMNS, _FULL_CELL, quality=80, method=1, ground=_GREY))
    # Room for the lines around it.
    sheet = _fitting(pictures, _LADDER, caption, MARKDOWN_BYTES - 500)
    strip = _fitting(pictures, _STRIP_LADDER, caption, INLINE_CHARS)
    return ContactSheet(f"{sheet}\n\n{caption}; a larger sheet: `{path}`", strip, path, total)


def _choose(workspace: Workspace, scope: Scope) -> tuple[int, list[Pictured]]:
    """How many current images there are, and the first of some items, taken evenly in the order of the catalogue."""
    items, attempts = schema.items, schema.attempts
    current = attempts.join(items, items.c.item_id == attempts.c.item_id)
    # What was adopted from tables may lack its files, until `repair` has fetched them again.
    conditions = [is_current(), attempts.c.images.is_not(None), items.c.active, *scope.of_attempts()]
    order = sa.func.row_number().over(order_by=[items.c.catalogue, items.c.position])
    with workspace.ledger.database.read() as connection:
        count = sa.select(sa.func.count(), sa.func.sum(image_count(connection))).select_from(current)
        made, images = connection.execute(count.where(*conditions)).one()
        numbered = (
            sa.select(attempts.c.images, order.label("number")).select_from(current).where(*conditions).subquery()
        )
        wanted = {i * made // _FULL_SHEET_IMAGES + 1 for i in range(_FULL_SHEET_IMAGES)}
        query = sa.select(numbered.c.images).where(numbered.c.number.in_(wanted)).order_by(numbered.c.number)
        listed = [orjson.loads(images)[0] for images in connection.execute(query).scalars()]
    return int(images or 0), [Pictured(image["path"], image["sha256"]) for image in listed]


def _fitting(
    pictures: Sequence[Image.Image], ladder: Sequence[tuple[int, int, int, int]], caption: str, room: int
) -> str:
    """A sheet as a markdown image with its data inside, of the first size and quality that is short enough."""
    for count, columns, cell, quality in ladder:
        data = _sheet(_evenly(pictures, count), columns, cell, quality=quality)
        markdown = f"![{caption}](data:image/webp;base64,{base64.b64encode(data).decode()})"
        if len(markdown) < room:
            return markdown
    return caption


def _evenly(pictures: Sequence[Image.Image], count: int) -> list[Image.Image]:
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[i * len(pictures) // count] for i in range(count)]


def _sheet(
    pictures: Sequence[Image.Image],
    columns: int,
    cell: int,
    *,
    quality: int,
    method: int = 3,
    ground: tuple[int, int, int] | None = None,
) -> bytes:
    """The pictures in square cells, row by row, as WebP; a higher `method` is smaller and slower.

    Without a `ground`, what no picture covers is transparent: it is looked at on light and dark pages.
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = columns * (cell + _GAP) - _GAP, rows * (cell + _GAP) - _GAP
    sheet = Image.new("RGBA", size) if ground is None else Image.new("RGB", size, ground)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        small = picture.resize((cell, cell), Image.Resampling.LANCZOS, reducing_gap=3.0)
        sheet.paste(small, (column * (cell + _GAP), row * (cell + _GAP)), None if ground is None else small)
    written = io.BytesIO()
    sheet.save(written, "WEBP", quality=quality, method=method)
    return written.getvalue()
