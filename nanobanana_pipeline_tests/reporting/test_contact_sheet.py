"""Contact sheets and the thumbnails they are made of."""

import base64
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from nanobanana_pipeline.reporting.contact_sheet import MARKDOWN_BYTES, contact_sheet
from nanobanana_pipeline.reporting.glance import INLINE_CHARS
from nanobanana_pipeline.reporting.thumbnails import Pictured, make_missing, thumbnail_path
from nanobanana_pipeline.storage.images import ImageStore
from nanobanana_pipeline_tests.reporting.conftest import World, rows


def test_a_sheet_is_light_enough_for_the_event_log(world: Callable[..., World]) -> None:
    """Dagster keeps metadata for good: a megabyte a shard would sink its database."""
    made = world(cached_picture=False)
    made.catalogue("plain", rows(30, resolution="0.5K", aspect_ratio=["1:1", "16:9", "1:8", "8:1"]))
    made.run()

    sheet = contact_sheet(made.workspace, "plain-000000")

    assert len(sheet.markdown.encode()) < MARKDOWN_BYTES
    assert sheet.images == 30
    data = re.search(r"data:image/webp;base64,([A-Za-z0-9+/=]+)\)", sheet.markdown)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as small:
        assert small.width > 300
    assert len(sheet.strip) < INLINE_CHARS, "Dagster would hide it behind a link"
    assert sheet.strip.startswith("![30 images](data:image/webp;base64,")
    assert sheet.path is not None
    with Image.open(Path(made.workspace.output, sheet.path)) as full:
        assert full.width > small.width


def test_several_images_of_a_task_are_all_counted(world: Callable[..., World]) -> None:
    """The sheet said three images where the tables beside it said four."""
    made = world(faults=[{"contains": "number 1", "fault": "several_images", "images": 2}])
    made.catalogue("plain", rows(3))
    made.run()

    assert contact_sheet(made.workspace).images == made.workspace.tables.read("images").num_rows == 4


def test_pictures_that_compress_badly_still_fit() -> None:
    """A provider's noise must not push the metadata over its limit: then the sheet shows less."""
    from nanobanana_pipeline.reporting.contact_sheet import (  # noqa: PLC0415 - under the surface
        _LADDER,
        _STRIP_LADDER,
        _fitting,
    )

    noise = [Image.frombytes("RGB", (200, 200), os.urandom(120_000)).convert("RGBA") for _ in range(24)]

    assert "base64" in _fitting(noise, _LADDER, "24 images", MARKDOWN_BYTES)
    assert len(_fitting(noise, _LADDER, "24 images", MARKDOWN_BYTES)) < MARKDOWN_BYTES
    assert len(_fitting(noise, _STRIP_LADDER, "24 images", INLINE_CHARS)) < INLINE_CHARS


@pytest.mark.parametrize("left", [0, 7, -200])
def test_a_torn_thumbnail_is_made_anew(world: Callable[..., World], left: int) -> None:
    """Left by a copy of the output that broke off, it failed every run of its shard from then on."""
    made = world()
    made.catalogue("plain", rows(2))
    made.run()
    whole = contact_sheet(made.workspace)
    torn, *_ = Path(made.workspace.output, "thumbnails").rglob("*.webp")
    before = torn.read_bytes()
    torn.write_bytes(before[:left])

    assert contact_sheet(made.workspace) == whole
    assert torn.read_bytes() == before


def test_thumbnails_are_made_once(world: Callable[..., World]) -> None:
    """Twenty thousand images take minutes: not at every report."""
    made = world()
    made.catalogue("plain", rows(3))
    made.run()
    contact_sheet(made.workspace)
    thumbnails = sorted(Path(made.workspace.output, "thumbnails").rglob("*.webp"))
    before = [path.stat().st_mtime_ns for path in thumbnails]
    assert thumbnails

    contact_sheet(made.workspace)

    assert [path.stat().st_mtime_ns for path in thumbnails] == before


def test_an_empty_shard_says_so(world: Callable[..., World]) -> None:
    """A shard where everything failed has a materialisation, too."""
    made = world(faults=[{"fault": "refused_400"}])
    made.catalogue("plain", rows(2))
    made.run()

    sheet = contact_sheet(made.workspace, "plain-000000")

    assert (sheet.markdown, sheet.strip, sheet.path, sheet.images) == ("No images yet.", "No images yet.", None, 0)


def test_a_missing_or_torn_image_has_no_thumbnail(tmp_path: Path) -> None:
    """Someone may tidy up the images: the report is still written, and the others are on it."""
    store = ImageStore(tmp_path)
    good = io.BytesIO()
    Image.effect_noise((640, 80), 50).save(good, "PNG")
    store.write("images/good.png", good.getvalue())
    store.write("images/torn.png", good.getvalue()[:1000])
    images = [Pictured(f"images/{name}.png", name * 16) for name in ("good", "torn", "gone")]

    made = {image.path: there for image, there in make_missing(store, [*images, Pictured("../out.png", "out" * 16)])}

    assert made == {"images/good.png": True, "images/torn.png": False, "images/gone.png": False, "../out.png": False}
    with Image.open(tmp_path / thumbnail_path("good" * 16)) as thumbnail:
        assert thumbnail.format == "WEBP"


@pytest.mark.parametrize(
    ("image", "thumbnail"),
    [
        ((1024, 1024), (320, 320)),
        ((1376, 768), (430, 240)),
        ((384, 3072), (240, 1920)),
        ((1536, 192), (1536, 192)),
        ((8000, 100), (1920, 24)),
        ((64, 48), (64, 48)),
    ],
)
def test_a_thumbnail_is_as_sharp_as_a_row_of_the_gallery_is_high(
    tmp_path: Path, image: tuple[int, int], thumbnail: tuple[int, int]
) -> None:
    """Strips of 8 to 1 were 40 pixels high, and a blur on the wall; none is larger than its image."""
    store = ImageStore(tmp_path)
    data = io.BytesIO()
    Image.new("RGB", image, "red").save(data, "JPEG")
    store.write("images/a.jpg", data.getvalue())

    list(make_missing(store, [Pictured("images/a.jpg", "ab" * 16)]))

    with Image.open(tmp_path / thumbnail_path("ab" * 16)) as made:
        assert made.size == thumbnail


def test_transparency_is_kept(tmp_path: Path) -> None:
    """A sticker on a transparent ground is shown on the page's ground, light or dark, and not on black."""
    store = ImageStore(tmp_path)
    data = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(data, "PNG")
    store.write("images/a.png", data.getvalue())

    assert [there for _, there in make_missing(store, [Pictured("images/a.png", "ab" * 16)])] == [True]

    with Image.open(tmp_path / thumbnail_path("ab" * 16)) as thumbnail:
        assert thumbnail.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize("shard", ["a-000000", "b-000000"])
def test_a_sheet_shows_its_own_shard(world: Callable[..., World], shard: str) -> None:
    """A sheet is about one partition; another's images on it would be a lie."""
    made = world()
    made.catalogue("a", rows(1))
    made.catalogue("b", rows(2))
    made.run()

    assert contact_sheet(made.workspace, shard).images == {"a-000000": 1, "b-000000": 2}[shard]
    assert contact_sheet(made.workspace).images == 3
    assert contact_sheet(made.workspace, catalogue="b").images == 2
