"""Pictures: drawn from a text by chance that can be had again, captioned with it, encoded as the provider would.

Nothing here knows of tasks or HTTP. Drawing takes tens of milliseconds, so it runs in threads (`Studio`), never on the
event loop.
"""

import asyncio
import colorsys
import io
import math
import random
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nanobanana_pipeline.simulator.draws import fraction

Format = Literal["PNG", "JPEG", "WEBP"]
Colour = tuple[int, int, int]

EXTENSIONS: dict[Format, str] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
MEDIA_TYPES: dict[Format, bytes] = {"PNG": b"image/png", "JPEG": b"image/jpeg", "WEBP": b"image/webp"}
MADE_BY = "simulated by nanobanana_pipeline"

_CANVAS = 1024  # the longest side a scene is painted at; larger pictures are enlarged from it
_PNG_MOST_PIXELS = 2_000_000  # above this PNG takes a second to encode
_CACHE_BYTES = 64_000_000


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
    painting = _paint(order)
    _caption(painting, order.caption)
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


# --- painting ---------------------------------------------------------------------------------------------------------


def _paint(order: PictureOrder) -> Image.Image:
    """A scene at canvas size, enlarged to the order's."""
    scale = min(1.0, _CANVAS / max(order.width, order.height))
    width, height = max(16, round(order.width * scale)), max(16, round(order.height * scale))
    chance = random.Random(order.chance)
    palette = _palette(chance)
    scene = _mesh(width, height, palette, chance)
    chance.choice(_SCENES)(scene, palette, chance)
    if scene.size != (order.width, order.height):
        scene = scene.resize((order.width, order.height), Image.Resampling.BICUBIC)
    return scene


def _palette(chance: random.Random) -> list[Colour]:
    """Six colours that go together: hues around one or two anchors, from dark to light."""
    hue = chance.random()
    spread = chance.choice((0.06, 0.12, 0.33, 0.5))
    colours: list[Colour] = []
    for step in range(6):
        shifted = hue + spread * (step % 3) / 2 + chance.uniform(-0.02, 0.02)
        lightness = 0.22 + 0.11 * step + chance.uniform(-0.03, 0.03)
        saturation = chance.uniform(0.45, 0.85)
        red, green, blue = colorsys.hls_to_rgb(shifted % 1.0, lightness, saturation)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


def _mesh(width: int, height: int, palette: list[Colour], chance: random.Random) -> Image.Image:
    """A soft gradient through a small grid of colours."""
    columns, rows = 3, 4
    grid = Image.new("RGB", (columns, rows))
    grid.putdata([chance.choice(palette[1:]) for _ in range(columns * rows)])
    return grid.resize((width, height), Image.Resampling.BICUBIC)


def _layer(scene: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    layer = Image.new("RGBA", scene.size, (0, 0, 0, 0))
    return layer, ImageDraw.Draw(layer)


def _paste(scene: Image.Image, layer: Image.Image) -> None:
    scene.paste(layer, (0, 0), layer)


def _sun(scene: Image.Image, palette: list[Colour], chance: random.Random) -> None:
    """A low sun with a halo over ranges of hills."""
    width, height = scene.size
    layer, pen = _layer(scene)
    radius = min(width, height) * chance.uniform(0.1, 0.2)
    x, y = width * chance.uniform(0.25, 0.75), height * chance.uniform(0.2, 0.45)
    for ring, alpha in ((2.2, 28), (1.6, 48), (1.0, 235)):
        reach = radius * ring
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(*palette[5], alpha))
    _paste(scene, layer)
    for range_number in range(4):
        _hills(scene, palette[3 - range_number], height * (0.5 + 0.11 * range_number), chance)


def _hills(scene: Image.Image, colour: Colour, level: float, chance: random.Random) -> None:
    width, height = scene.size
    waves = [(chance.uniform(0.5, 3.5), chance.uniform(0, math.tau), chance.uniform(0.01, 0.05)) for _ in range(3)]
    ridge = [
        (x, level - height * sum(high * math.sin(pitch * math.tau * x / width + phase) for pitch, phase, high in waves))
        for x in range(0, width + 8, 8)
    ]
    layer, pen = _layer(scene)
    pen.polygon([*ridge, (width + 8, height), (0, height)], fill=(*colour, 225))
    _paste(scene, layer)


def _orbs(scene: Image.Image, palette: list[Colour], chance: random.Random) -> None:
    """Translucent discs and rings, afloat."""
    width, height = scene.size
    for _ in range(chance.randint(9, 16)):
        layer, pen = _layer(scene)
        radius = min(width, height) * chance.uniform(0.04, 0.28)
        x, y = chance.uniform(0, width), chance.uniform(0, height)
        box = (x - radius, y - radius, x + radius, y + radius)
        colour = (*chance.choice(palette), chance.randint(70, 170))
        if chance.random() < 0.35:
            pen.ellipse(box, outline=colour, width=max(2, round(radius * 0.12)))
        else:
            pen.ellipse(box, fill=colour)
        _paste(scene, layer)


def _blocks(scene: Image.Image, palette: list[Colour], chance: random.Random) -> None:
    """A grid of quarter circles, halves and squares, after the Bauhaus."""
    width, height = scene.size
    cell = max(24, min(width, height) // chance.choice((3, 4, 5)))
    layer, pen = _layer(scene)
    for left in range(0, width, cell):
        for top in range(0, height, cell):
            back, front = chance.sample(palette, 2)
            pen.rectangle((left, top, left + cell, top + cell), fill=(*back, 215))
            turn = chance.randrange(4)
            shape = chance.randrange(4)
            if shape == 0:
                x, y = left - cell * (turn % 2), top - cell * (turn // 2)
                pen.pieslice((x, y, x + 2 * cell, y + 2 * cell), 0, 360, fill=None)
                pen.pieslice((x, y, x + 2 * cell, y + 2 * cell), *_QUARTERS[turn], fill=(*front, 235))
            elif shape == 1:
                pen.ellipse((left + cell * 0.15, top + cell * 0.15, left + cell * 0.85, top + cell * 0.85), fill=front)
            elif shape == 2:
                pen.pieslice((left, top, left + cell, top + cell), turn * 90, turn * 90 + 180, fill=(*front, 235))
    _paste(scene, layer)


_QUARTERS = ((0, 90), (90, 180), (270, 360), (180, 270))


def _night(scene: Image.Image, palette: list[Colour], chance: random.Random) -> None:
    """Stars, a moon and far ridges."""
    width, height = scene.size
    dark = Image.new("RGB", scene.size, tuple(channel // 4 for channel in palette[0]))
    scene.paste(Image.blend(scene, dark, 0.72))
    layer, pen = _layer(scene)
    for _ in range(width * height // 2500):
        x, y, size = chance.uniform(0, width), chance.uniform(0, height), chance.choice((0.6, 0.8, 1.2, 2.0))
        pen.ellipse((x - size, y - size, x + size, y + size), fill=(255, 255, 240, chance.randint(90, 255)))
    radius = min(width, height) * chance.uniform(0.08, 0.16)
    x, y = width * chance.uniform(0.2, 0.8), height * chance.uniform(0.15, 0.4)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*palette[5], 250))
    _paste(scene, layer)
    for range_number in range(3):
        shade: Colour = tuple(channel // (3 + range_number) for channel in palette[1])  # pyright: ignore[reportAssignmentType]
        _hills(scene, shade, height * (0.62 + 0.12 * range_number), chance)


def _ribbons(scene: Image.Image, palette: list[Colour], chance: random.Random) -> None:
    """Broad waves of colour, one over the other."""
    width, height = scene.size
    for number in range(chance.randint(5, 8)):
        layer, pen = _layer(scene)
        pitch, phase, high = chance.uniform(0.5, 2.0), chance.uniform(0, math.tau), height * chance.uniform(0.05, 0.16)
        level, thick = height * chance.uniform(0.05, 0.95), height * chance.uniform(0.03, 0.12)
        top = [(x, level + high * math.sin(pitch * math.tau * x / width + phase)) for x in range(-8, width + 9, 8)]
        bottom = [(x, y + thick * (1 + 0.6 * math.sin(x / width * math.tau + number))) for x, y in reversed(top)]
        pen.polygon([*top, *bottom], fill=(*palette[number % 6], chance.randint(120, 200)))
        _paste(scene, layer.filter(ImageFilter.GaussianBlur(1)))


_SCENES: tuple[Callable[[Image.Image, list[Colour], random.Random], None], ...] = (
    _sun,
    _orbs,
    _blocks,
    _night,
    _ribbons,
)


# --- the caption ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _caption(painting: Image.Image, text: str) -> None:
    """The text in white on a dark panel along the bottom, smaller the longer it is, cut when it is too long."""
    width, height = painting.size
    margin = max(6, min(width, height) // 32)
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split()) or " "
    size, lines = _fit(words, width - 4 * margin, height // 2)
    leading = round(size * 1.3)
    panel_height = leading * len(lines) + 2 * margin
    top = height - margin - panel_height
    panel = Image.new("RGBA", (width - 2 * margin, panel_height), (0, 0, 0, 0))
    pen = ImageDraw.Draw(panel)
    pen.rounded_rectangle((0, 0, panel.width - 1, panel.height - 1), radius=margin, fill=(12, 14, 20, 165))
    for number, line in enumerate(lines):
        pen.text((margin, margin + number * leading), line, font=_font(size), fill=(255, 255, 255, 240))
    painting.paste(panel, (margin, top), panel)


def _fit(text: str, width: int, height: int) -> tuple[int, list[str]]:
    """The largest of a few sizes at which the text fits, and its lines."""
    largest = max(11, min(width // 14, height // 7))
    lines: list[str] = []
    size = largest
    for size in (largest, largest * 3 // 4, largest // 2, 11):
        if size < 11:
            continue
        lines = _wrap(text, size, width)
        if len(lines) * size * 1.3 <= height:
            return size, lines
    most = max(1, int(height / (size * 1.3)))
    return size, [*lines[: most - 1], lines[most - 1] + "…"]


def _wrap(text: str, size: int, width: int) -> list[str]:
    font = _font(size)
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width and len(line) > 1:
            fits = _longest_prefix(line, font, width)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line]


def _longest_prefix(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> int:
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(word[:middle]) <= width else (low, middle - 1)
    return low


# --- encoding ---------------------------------------------------------------------------------------------------------


def _encode(painting: Image.Image, form: Format) -> bytes:
    target = io.BytesIO()
    if form == "PNG":
        painting.save(target, "PNG", compress_level=1)
    elif form == "WEBP":
        painting.save(target, "WEBP", quality=80, method=0)
    else:
        painting.save(target, "JPEG", quality=88, comment=MADE_BY)
    return target.getvalue()


def _pad(data: bytes, order: PictureOrder) -> bytes:
    """Fill up to the wanted number of bytes with JPEG comments, which decoders skip."""
    missing = 0 if order.padded_to is None else order.padded_to - len(data)
    filler = bytearray()
    while missing > 4:
        length = min(missing - 2, 65535)
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
    width = 25_000
    height = max(1, megapixels * 1_000_000 // width)
    row = b"\0" + bytes(math.ceil(width / 8))
    packer = zlib.compressobj(9)
    packed = bytearray()
    for _ in range(height):
        packed += packer.compress(row)
    packed += packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", bytes(packed)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return Picture(data, "PNG")
