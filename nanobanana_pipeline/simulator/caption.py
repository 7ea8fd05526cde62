"""A prompt written on its picture: wrapped, shrunk to fit, cut when it is too long; any Unicode at all.

Pillow's built-in font is the only one there is everywhere, and it knows little beyond ASCII. Accents are dropped; what
is then still unknown (Chinese, emoji) is drawn as a small tile with a pattern of its own, to keep texts distinct.
"""

import unicodedata
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

_SMALLEST = 11  # pixels; below this the font is a smudge
_LEADING = 1.3
_TILE_DOTS = 3  # dots along a tile's side

_WHITE = (255, 255, 255, 240)
_PANEL = (12, 14, 20, 165)


def write_caption(picture: Image.Image, text: str) -> None:
    """Write `text` along the bottom of a picture, in white on a dark panel."""
    width, height = picture.size
    margin = max(6, min(width, height) // 32)
    size, lines = _fit(_writable(text), width - 4 * margin, height // 2)
    leading = round(size * _LEADING)
    panel = Image.new("RGBA", (width - 2 * margin, leading * len(lines) + 2 * margin), (0, 0, 0, 0))
    pen = ImageDraw.Draw(panel)
    pen.rounded_rectangle((0, 0, panel.width - 1, panel.height - 1), radius=margin, fill=_PANEL)
    for number, line in enumerate(lines):
        _write_line(pen, line, margin, margin + number * leading, size)
    picture.paste(panel, (margin, height - margin - panel.height), panel)


def _writable(text: str) -> str:
    """The text on one line, accents and invisible characters dropped."""
    seen = "".join(char if char.isprintable() else " " for char in unicodedata.normalize("NFKD", text))
    return " ".join("".join(char for char in seen if not unicodedata.combining(char)).split()) or " "


def _is_known(char: str) -> bool:
    return " " <= char <= "~" or char == "…"


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=65536)
def _advance(char: str, size: int) -> float:
    return _font(size).getlength(char) if _is_known(char) else size


def _length(text: str, size: int) -> float:
    return sum(_advance(char, size) for char in text)


def _fit(text: str, width: int, height: int) -> tuple[int, list[str]]:
    """The largest of a few sizes at which the text fits into the box, and its lines; cut if it fits at none."""
    largest = max(_SMALLEST, min(width // 14, height // 7))
    sizes = [size for size in (largest, largest * 3 // 4, largest // 2) if size > _SMALLEST]
    for size in [*sizes, _SMALLEST]:
        lines = _wrap(text, size, width)
        if len(lines) * size * _LEADING <= height:
            return size, lines
    lines = _wrap(text, _SMALLEST, width)
    most = max(1, int(height / (_SMALLEST * _LEADING)))
    return _SMALLEST, [*lines[: most - 1], lines[most - 1][:-1] + "…"] if len(lines) > most else lines


def _wrap(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    left = float(width)
    for word in text.split(" "):
        length = _length(word, size)
        gap = _advance(" ", size) if lines[-1] else 0.0
        if gap + length <= left:
            lines[-1] += f" {word}" if gap else word
            left -= gap + length
            continue
        for part in _parts(word, size, width):
            lines.append(part)
            left = width - _length(part, size)
    return lines if lines[0] else lines[1:]


def _parts(word: str, size: int, width: int) -> list[str]:
    """A word cut into pieces that fit the width: Chinese has no spaces, and some prompts are one long word."""
    parts = [""]
    left = float(width)
    for char in word:
        advance = _advance(char, size)
        if advance > left and parts[-1]:
            parts.append("")
            left = float(width)
        parts[-1] += char
        left -= advance
    return parts


def _write_line(pen: ImageDraw.ImageDraw, line: str, x: float, y: float, size: int) -> None:
    known = ""
    for char in line:
        if _is_known(char):
            known += char
            continue
        pen.text((x, y), known, font=_font(size), fill=_WHITE)
        x, known = x + _length(known, size), ""
        _draw_tile(pen, char, x, y, size)
        x += size
    pen.text((x, y), known, font=_font(size), fill=_WHITE)


def _draw_tile(pen: ImageDraw.ImageDraw, char: str, x: float, y: float, size: int) -> None:
    dot = size * 0.8 / _TILE_DOTS
    pattern = ord(char) * 2654435761 >> 7  # a multiplicative hash: neighbours in Unicode look unlike each other
    for place in range(_TILE_DOTS**2):
        left, top = x + dot * (place % _TILE_DOTS), y + size * 0.15 + dot * (place // _TILE_DOTS)
        shade = _WHITE if pattern >> place & 1 else (255, 255, 255, 90)
        pen.rectangle((left, top, left + dot * 0.75, top + dot * 0.75), fill=shade)
