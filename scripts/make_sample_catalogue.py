"""Writes the sample catalogue, `data/catalogue/sample.parquet`: the same bytes every time.

The prompts were written for this project. Between them they use every aspect ratio and resolution, image editing by
URL, several samples of a prompt, campaigns, and two further columns (category, audience) to group by.
"""
# ruff: noqa: INP001 (a folder of programs, no package)
# pyarrow has no types of its own.
# pyright: reportUnknownParameterType=false

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TARGET = Path(__file__).resolve().parent.parent / "data" / "catalogue" / "sample.parquet"
REFERENCES = "https://example.com/references"
SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": pa.string(),
        "image_urls": pa.list_(pa.string()),
        "aspect_ratio": pa.string(),
        "resolution": pa.string(),
        "response_modalities": pa.list_(pa.string()),
        "samples": pa.int64(),
        "campaign": pa.string(),
        "category": pa.string(),
        "audience": pa.string(),
    }
)


@dataclass(frozen=True)
class Row:
    """A prompt of the sample; None leaves a choice to the model's defaults."""

    prompt_id: str
    prompt: str
    aspect_ratio: str | None
    resolution: str | None
    campaign: str
    category: str
    audience: str
    samples: int = 1
    image_urls: tuple[str, ...] | None = None
    response_modalities: tuple[str, ...] | None = ("Image",)


def _tea(name: str, prompt: str, ratio: str | None, resolution: str | None, category: str, samples: int = 1) -> Row:
    return Row(f"tea-{name}", prompt, ratio, resolution, "spring-tea", category, "shop visitors", samples)


def _train(name: str, prompt: str, ratio: str, resolution: str | None, samples: int = 1) -> Row:
    return Row(f"train-{name}", prompt, ratio, resolution, "night-trains", "travel poster", "travellers", samples)


def _plate(name: str, prompt: str, ratio: str, resolution: str | None, samples: int = 1) -> Row:
    return Row(f"plate-{name}", prompt, ratio, resolution, "field-guide", "nature plate", "young readers", samples)


def _room(name: str, prompt: str, ratio: str | None, resolution: str | None, samples: int = 1) -> Row:
    return Row(f"room-{name}", prompt, ratio, resolution, "small-spaces", "interior", "home owners", samples)


def _sign(name: str, prompt: str, ratio: str, resolution: str | None) -> Row:
    text_too = ("Text", "Image")
    return Row(f"sign-{name}", prompt, ratio, resolution, "signs", "lettering", "shop visitors", 1, None, text_too)


def _edit(name: str, prompt: str, ratio: str | None, resolution: str | None, *references: str) -> Row:
    urls = tuple(f"{REFERENCES}/{reference}" for reference in references)
    return Row(f"edit-{name}", prompt, ratio, resolution, "retouching", "image editing", "studio", 1, urls, None)


ROWS = (
    _tea(
        "first-flush",
        "A glass teapot of pale green first-flush tea on a slate counter, steam curling into early window light, "
        "one fresh leaf resting on the lid; quiet, airy still life, shallow depth of field",
        "4:5",
        "1K",
        "still life",
        3,
    ),
    _tea(
        "tin-range",
        "Five tea tins in a row from pale celadon to deep forest green, plain lids, linen backdrop, even studio "
        "light, each tin casting one soft shadow to the right",
        "21:9",
        "1K",
        "product",
        2,
    ),
    _tea(
        "pour",
        "Tea being poured from a small clay pot into a white cup, frozen mid-air so that the stream looks like "
        "amber glass, dark background, single side light",
        "2:3",
        "0.5K",
        "still life",
        2,
    ),
    _tea(
        "counter-banner",
        "A very wide banner for a tea counter: a misty terraced hillside at dawn, rows of tea bushes drawn as "
        "flowing contour lines, three tiny pickers with baskets, muted greens and cream",
        "8:1",
        "1K",
        "banner",
    ),
    _tea(
        "scroll",
        "A tall hanging scroll in ink wash: a single branch of cherry blossom above an empty tea bowl, generous "
        "blank paper between them, one red seal in the corner",
        "1:8",
        "0.5K",
        "banner",
    ),
    _tea(
        "cake-pairing",
        "A slice of lemon and poppy-seed cake beside a cup of white tea on a marble tray, crumbs left honestly "
        "where they fell, overhead view, spring morning light",
        "1:1",
        "1K",
        "still life",
    ),
    _tea(
        "shelf",
        "An old apothecary shelf filled with glass jars of dried leaves, flowers and citrus peel, handwritten paper "
        "labels, warm lamplight, seen straight on like a map",
        "3:2",
        None,
        "interior",
    ),
    _tea(
        "wrapping",
        "Seamless wrapping-paper pattern of small teapots, whisks and camellias, flat two-colour block print in "
        "indigo on natural paper, slightly uneven ink",
        "1:1",
        "0.5K",
        "pattern",
        2,
    ),
    _tea(
        "rain-window",
        "View from inside a tea house through a rain-streaked window, blurred umbrellas passing outside, a cup in "
        "sharp focus on the sill, cool and warm light meeting on its rim",
        "16:9",
        "0.5K",
        "still life",
    ),
    _train(
        "mountain-pass",
        "Screen-printed travel poster of a night train crossing a stone viaduct under a huge moon, five flat inks, "
        "deep blue valley, lit windows as small yellow squares",
        "3:4",
        "1K",
        3,
    ),
    _train(
        "dining-car",
        "The dining car of a night train at two in the morning: one traveller reading, a waiter polishing a glass, "
        "reflections in the black window, poster style with grain and soft edges",
        "4:3",
        "1K",
    ),
    _train(
        "sleeper",
        "Cut-away illustration of a sleeping compartment, bunks made up with striped blankets, a ladder, a small "
        "lamp, a suitcase with stickers, everything labelled by shape alone, without words",
        "5:4",
        "0.5K",
        2,
    ),
    _train(
        "coastline",
        "A train following the edge of the sea at first light, the whole coast as one sweeping curve, gulls as "
        "three white strokes, gouache on textured paper",
        "21:9",
        "2K",
    ),
    _train(
        "platform",
        "An empty platform just after departure, steam drifting under iron arches, a forgotten red scarf on a "
        "bench, cinematic wide shot, muted palette with one accent",
        "16:9",
        "1K",
    ),
    _train(
        "arrival",
        "Morning arrival in a northern city: copper roofs wet with rain, a tram bell ringing, a family with too "
        "much luggage, lively line drawing with loose watercolour",
        "9:16",
        "0.5K",
    ),
    _train(
        "route-map",
        "A schematic railway map drawn as an embroidered sampler, coloured threads for lines, knots for stations, "
        "on natural linen, without any lettering",
        "4:1",
        "0.5K",
    ),
    _train(
        "snow",
        "A small station deep in snow at blue hour, one warm lamp, a railwayman sweeping the step, flakes caught in "
        "the light; woodcut with three blocks",
        "2:3",
        "1K",
    ),
    _train(
        "ticket",
        "An ornate ticket design for a night train, guilloche borders, a moon and a wheel in the centre medallion, "
        "engraved look in violet ink, no text",
        "4:1",
        "1K",
    ),
    _plate(
        "kingfisher",
        "Natural-history plate of a kingfisher diving: the bird shown in four positions from perch to splash, fine "
        "pencil under transparent watercolour, cream paper",
        "1:4",
        "1K",
        2,
    ),
    _plate(
        "moss",
        "A square of forest floor seen through a magnifying glass: five mosses, a springtail, a seed caught in dew, "
        "scientific illustration with patient detail",
        "1:1",
        "2K",
    ),
    _plate(
        "swifts",
        "The flight of swifts over a town through one day, drawn as a single long frieze from dawn to dusk, sky "
        "changing colour behind them",
        "8:1",
        "0.5K",
    ),
    _plate(
        "oak-year",
        "One oak in the four seasons, the same tree divided into four vertical bands, leaf, acorn, bare branch and "
        "bud, botanical illustration",
        "3:2",
        "1K",
    ),
    _plate(
        "tidepool",
        "A tide pool from above: anemones, a hermit crab changing shells, purple weed, light rippling over sand; "
        "coloured pencil for a children's field guide",
        "5:4",
        "1K",
    ),
    _plate(
        "owl-feathers",
        "Six feathers of a tawny owl arranged by size on pale grey, each with its true barring and soft leading "
        "edge, museum plate lighting",
        "4:5",
        "0.5K",
    ),
    _plate(
        "bee-lines",
        "How a bumblebee sees a meadow: the same flowers twice, once in our colours and once with the patterns that "
        "only a bee can see, side by side",
        "16:9",
        "1K",
        2,
    ),
    _plate(
        "roots",
        "A tall section through soil showing how deep the roots of seven meadow plants reach, stones and worms "
        "included, tidy ink drawing with earthy washes",
        "1:8",
        "1K",
    ),
    _plate(
        "fox-tracks",
        "Tracks of a fox in fresh snow, walking, trotting and leaping, arranged as three vertical strips with small "
        "sketches of the animal in motion",
        "1:4",
        "0.5K",
    ),
    _plate(
        "mushrooms",
        "A ring of autumn mushrooms at child's-eye level, rain beads on their caps, a beetle sheltering beneath "
        "one, gentle storybook realism",
        "3:4",
        "0.5K",
    ),
    _room(
        "attic-desk",
        "A writing desk under a sloping attic window, pale ash wood, one trailing plant, a wool blanket over the "
        "chair, northern afternoon light, architectural photograph",
        "3:2",
        "0.5K",
        2,
    ),
    _room(
        "stair-library",
        "A narrow staircase whose every riser is a bookshelf, a child sitting half-way up with a torch, warm "
        "evening interior, honest scale",
        "9:16",
        "1K",
    ),
    _room(
        "boat-kitchen",
        "The galley of a converted barge: curved oak worktop, brass taps, mugs on hooks, canal light moving on the "
        "ceiling",
        "4:3",
        "0.5K",
    ),
    _room(
        "window-bed",
        "A bed built into a deep window niche, linen curtains half drawn, a sleeping cat, first snow outside; calm "
        "interior in white and rust",
        "5:4",
        "1K",
    ),
    _room(
        "balcony",
        "A balcony of two square metres turned into a garden: climbing beans, a folding chair, lanterns at dusk, "
        "city roofs beyond",
        "2:3",
        "0.5K",
    ),
    _room(
        "studio-wall",
        "A plywood wall of pegs, shelves and fold-out tables in a one-room studio, everything in its place, drawn "
        "as a clean isometric illustration",
        None,
        "1K",
        2,
    ),
    _room(
        "tiled-bath",
        "A tiny bathroom in hand-made sea-green tiles, round mirror, one high window, steam in a sunbeam; "
        "wide-angle without distortion",
        "4:5",
        "4K",
    ),
    _sign(
        "bakery",
        'A hand-painted shop sign that reads "Korn & Krume" in gold leaf on dark green glass, slight wear at the '
        "edges, evening street reflected in it",
        "21:9",
        "0.5K",
    ),
    _sign(
        "bicycle",
        'An enamel sign for a bicycle repair shop with the words "Second Wind" curved over a spoked wheel, cream '
        "and vermilion, photographed straight on",
        "1:1",
        "1K",
    ),
    _sign(
        "library-hours",
        'A brass plaque by a library door with the single line "Open until the last page", engraved serif capitals, '
        "soft overcast light",
        "4:3",
        "0.5K",
    ),
    _sign(
        "market-flag",
        'A long vertical market flag with the word "Honey" running downwards in rounded letters, bees around it, '
        "sun-faded cotton",
        "1:4",
        "0.5K",
    ),
    _sign(
        "neon",
        'A neon sign spelling "après la pluie" in one continuous pink tube above a wet cobbled lane, its reflection '
        "doubled in the puddles",
        "16:9",
        "2K",
    ),
    _sign(
        "crate",
        'A fruit-crate label in the style of old lithographs: oranges, a lighthouse and the name "Faro Claro", rich '
        "flat colour, aged paper",
        "4:1",
        "0.5K",
    ),
    _edit(
        "teapot-season",
        "Keep the teapot exactly as it is and move the scene from winter to spring: blossom outside the window, "
        "warmer light, the same shadows",
        "1:1",
        "1K",
        "teapot-winter.png",
    ),
    _edit(
        "poster-night",
        "Turn this daytime travel poster into a night scene with lit windows and stars, keeping its composition and "
        "number of inks",
        "3:4",
        "0.5K",
        "poster-day.png",
    ),
    _edit(
        "chair-in-room",
        "Place the chair from the first picture by the window of the second, in the right scale and light, with a "
        "believable shadow",
        "3:2",
        "1K",
        "chair.png",
        "attic-room.png",
    ),
    _edit(
        "three-tins",
        "Arrange the three tins from these pictures on one shelf, evenly lit, labels facing forward, left to right "
        "in the order given",
        "16:9",
        "2K",
        "tin-celadon.png",
        "tin-moss.png",
        "tin-forest.png",
    ),
    _edit(
        "remove-cables",
        "Remove the cables and the power strip from the desk, and leave everything else untouched, the grain of the "
        "wood included",
        None,
        "0.5K",
        "desk.png",
    ),
    _edit(
        "plate-to-line",
        "Redraw this watercolour plate as a clean line drawing for colouring in, closed outlines, no shading",
        "4:5",
        "0.5K",
        "kingfisher-plate.png",
    ),
    _edit(
        "panorama",
        "Extend this coast to both sides into a panorama, continuing the path, the sea and the weather without a seam",
        "8:1",
        "4K",
        "coast.png",
    ),
)


def sample_table() -> pa.Table:
    """The sample catalogue in memory."""
    return pa.Table.from_pylist([asdict(row) for row in ROWS], schema=SCHEMA)


def write_sample(path: Path) -> None:
    """Write the sample catalogue to a file."""
    pq.write_table(sample_table(), path, compression="zstd", row_group_size=len(ROWS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the sample catalogue.")
    parser.add_argument("path", nargs="?", type=Path, default=TARGET, help="where to write (default: %(default)s)")
    write_sample(parser.parse_args().path)
