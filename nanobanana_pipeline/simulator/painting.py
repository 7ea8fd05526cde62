"""Scenes: a gradient and shapes in colours that go together, all drawn from one text by chance that can be had again.

Only painting: captions are in `caption`, file formats in `pictures`.
"""

import math
import random
from collections.abc import Callable

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Palette = tuple[Colour, ...]
Scene = Callable[[Image.Image, Palette, random.Random], None]

_CANVAS = 1024  # the longest side that scenes are painted at; larger pictures are enlarged from it
_STEP = 8  # pixels between the points of a curve


def paint(chance: str, width: int, height: int) -> Image.Image:
    """A scene of that size in pixels, the same for the same `chance`."""
    scale = min(1.0, _CANVAS / max(width, height))
    canvas = (max(16, round(width * scale)), max(16, round(height * scale)))
    draws = random.Random(chance)
    palette = draws.choice(_PALETTES)
    scene = _gradient(canvas, palette, draws)
    draws.choice(_SCENES)(scene, palette, draws)
    return scene if canvas == (width, height) else scene.resize((width, height), Image.Resampling.BICUBIC)


def _palette(colours: str) -> Palette:
    """Six colours, dark to light, from their hex digits."""
    red_green_blue = (bytes.fromhex(colour) for colour in colours.split())
    return tuple((red, green, blue) for red, green, blue in red_green_blue)


_PALETTES: tuple[Palette, ...] = tuple(
    map(
        _palette,
        (
            "0b1d3a 1c3f6e 3a6ea5 6fa8c9 f2a65a fbe3c0",  # dusk over water
            "2b1b17 5c2a1e a4452c d9793d f0b35a fbe8c8",  # clay
            "10261e 1f4d3a 3d7a57 7fb069 d9e07a f6f3d0",  # forest
            "1a1033 3b1c5a 7a2e7a c2447a f2846b fde2c4",  # orchid
            "0d2b33 14535c 1f8a8c 62c3b4 f4d58d fff4d6",  # lagoon
            "221d2e 4a3f5c 7d6b8a b59fae e6c7b8 f9ece2",  # heather
            "2d142c 510a32 801336 c72c41 ee7a57 fcd7a5",  # ember
            "11212d 253745 4a6572 8aa6b0 c7d6d5 f3f5f0",  # fog
            "1b1b3a 34347a 5d5fb5 9a95e0 e7b8e6 fdeff9",  # violet hour
            "283618 465b2a 7a8b3c c2a83e e3b505 fdf0c0",  # harvest
            "071e22 1d3f4a 31707a f4845f f7b267 fff0d9",  # coral
            "1f1300 4a2c0a 8a5a1c c9913a e8c67a fbf1d8",  # amber
        ),
    )
)


def _gradient(size: tuple[int, int], palette: Palette, draws: random.Random) -> Image.Image:
    """A soft gradient through a small grid of colours, darker below as skies are."""
    columns, rows = 3, 4
    grid = Image.new("RGB", (columns, rows))
    for row in range(rows):
        for column in range(columns):
            grid.putpixel((column, row), palette[min(5, max(1, 5 - row + draws.choice((-1, 0, 0, 1))))])
    return grid.resize(size, Image.Resampling.BICUBIC)


def _layer(scene: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    layer = Image.new("RGBA", scene.size, (0, 0, 0, 0))
    return layer, ImageDraw.Draw(layer)


def _disc(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return (x - radius, y - radius, x + radius, y + radius)


def _hills(scene: Image.Image, colour: Colour, level: float, draws: random.Random) -> None:
    """One range of hills, from `level` (pixels from the top) down."""
    width, height = scene.size
    waves = [(draws.uniform(0.5, 3.5), draws.uniform(0, math.tau), draws.uniform(0.01, 0.05)) for _ in range(3)]
    ridge = [
        (x, level - height * sum(high * math.sin(pitch * math.tau * x / width + phase) for pitch, phase, high in waves))
        for x in range(0, width + _STEP, _STEP)
    ]
    layer, pen = _layer(scene)
    pen.polygon([*ridge, (width + _STEP, height), (0, height)], fill=(*colour, 230))
    scene.paste(layer, (0, 0), layer)


def _sunset(scene: Image.Image, palette: Palette, draws: random.Random) -> None:
    """A low sun with a halo over ranges of hills."""
    width, height = scene.size
    layer, pen = _layer(scene)
    radius = min(width, height) * draws.uniform(0.1, 0.2)
    x, y = width * draws.uniform(0.25, 0.75), height * draws.uniform(0.2, 0.45)
    for reach, alpha in ((2.2, 30), (1.6, 55), (1.0, 240)):
        pen.ellipse(_disc(x, y, radius * reach), fill=(*palette[5], alpha))
    scene.paste(layer, (0, 0), layer)
    for number in range(4):
        _hills(scene, palette[3 - number], height * (0.5 + 0.11 * number), draws)


def _night(scene: Image.Image, palette: Palette, draws: random.Random) -> None:
    """Stars, a moon and far ridges."""
    width, height = scene.size
    scene.paste(Image.blend(scene, Image.new("RGB", scene.size, _darker(palette[0], 2)), 0.75))
    layer, pen = _layer(scene)
    for _ in range(width * height // 2500):
        star = _disc(draws.uniform(0, width), draws.uniform(0, height), draws.choice((0.6, 0.8, 1.2, 2.0)))
        pen.ellipse(star, fill=(255, 255, 240, draws.randint(90, 255)))
    radius = min(width, height) * draws.uniform(0.08, 0.16)
    pen.ellipse(
        _disc(width * draws.uniform(0.2, 0.8), height * draws.uniform(0.15, 0.4), radius), fill=(*palette[5], 250)
    )
    scene.paste(layer, (0, 0), layer)
    for number in range(3):
        _hills(scene, _darker(palette[1], 1 + number), height * (0.62 + 0.12 * number), draws)


def _darker(colour: Colour, times: int) -> Colour:
    red, green, blue = (channel // times for channel in colour)
    return red, green, blue


def _orbs(scene: Image.Image, palette: Palette, draws: random.Random) -> None:
    """Translucent discs and rings, afloat."""
    width, height = scene.size
    for _ in range(draws.randint(9, 16)):
        layer, pen = _layer(scene)
        radius = min(width, height) * draws.uniform(0.04, 0.28)
        disc = _disc(draws.uniform(0, width), draws.uniform(0, height), radius)
        colour = (*draws.choice(palette), draws.randint(90, 190))
        if draws.random() < 0.35:
            pen.ellipse(disc, outline=colour, width=max(2, round(radius * 0.12)))
        else:
            pen.ellipse(disc, fill=colour)
        scene.paste(layer, (0, 0), layer)


def _blocks(scene: Image.Image, palette: Palette, draws: random.Random) -> None:
    """A grid of quarter circles, halves and discs, after the Bauhaus."""
    width, height = scene.size
    cell = max(24, min(width, height) // draws.choice((3, 4, 5)))
    layer, pen = _layer(scene)
    for left in range(0, width, cell):
        for top in range(0, height, cell):
            back, front = draws.sample(palette, 2)
            pen.rectangle((left, top, left + cell, top + cell), fill=(*back, 235))
            _ornament(pen, (left, top, cell), front, draws)
    scene.paste(layer, (0, 0), layer)


def _ornament(pen: ImageDraw.ImageDraw, square: tuple[int, int, int], colour: Colour, draws: random.Random) -> None:
    left, top, cell = square
    turn = draws.randrange(4)
    match draws.randrange(4):
        case 0:
            # A quarter of a disc that is centred on one of the corners.
            x, y, angle = (
                (left, top, 0),
                (left + cell, top, 90),
                (left + cell, top + cell, 180),
                (left, top + cell, 270),
            )[turn]
            pen.pieslice(_disc(x, y, cell), angle, angle + 90, fill=colour)
        case 1:
            pen.ellipse(_disc(left + cell / 2, top + cell / 2, cell * 0.35), fill=colour)
        case 2:
            pen.pieslice((left, top, left + cell, top + cell), turn * 90, turn * 90 + 180, fill=colour)
        case _:
            pass


def _ribbons(scene: Image.Image, palette: Palette, draws: random.Random) -> None:
    """Broad waves of colour, one over the other."""
    width, height = scene.size
    for number in range(draws.randint(5, 8)):
        layer, pen = _layer(scene)
        pitch, phase, high = draws.uniform(0.5, 2.0), draws.uniform(0, math.tau), height * draws.uniform(0.05, 0.16)
        level, thick = height * draws.uniform(0.05, 0.95), height * draws.uniform(0.03, 0.12)
        upper = [
            (x, level + high * math.sin(pitch * math.tau * x / width + phase))
            for x in range(-_STEP, width + _STEP + 1, _STEP)
        ]
        lower = [(x, y + thick * (1 + 0.6 * math.sin(x / width * math.tau + number))) for x, y in reversed(upper)]
        pen.polygon([*upper, *lower], fill=(*palette[number % 6], draws.randint(140, 215)))
        scene.paste(layer, (0, 0), layer)


_SCENES: tuple[Scene, ...] = (_sunset, _night, _orbs, _blocks, _ribbons)
