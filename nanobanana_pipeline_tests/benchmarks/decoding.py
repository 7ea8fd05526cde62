"""What looking at a picture costs: its structure, every pixel, and the decoder alone, on the same picture."""

import io
import time
from collections.abc import Callable
from typing import Final

from PIL import Image

from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.storage.verification import verify_image
from nanobanana_pipeline_tests.benchmarks.measuring import Section, table
from nanobanana_pipeline_tests.benchmarks.provider import photo

_TIMES: Final = 40
_ROUNDS: Final = 5


def measure() -> Section:
    """Milliseconds of CPU for each, the least of some rounds."""
    data, limits = photo(), load_spec().limits
    ways: dict[str, Callable[[], object]] = {
        "verify = structure": lambda: verify_image(data, content_type="image/jpeg", mode="structure", limits=limits),
        "verify = full (the default)": lambda: verify_image(
            data, content_type="image/jpeg", mode="full", limits=limits
        ),
        "Pillow's decoder alone": lambda: Image.open(io.BytesIO(data)).load(),
    }
    figures = {name: min(_milliseconds(way) for _ in range(_ROUNDS)) for name, way in ways.items()}
    rows = [[name, f"{milliseconds:.2f}"] for name, milliseconds in figures.items()]
    text = f"A JPEG of 1024 x 1024 pixels and {len(data):,} bytes.\n\n" + table(["what", "CPU ms a picture"], rows)
    return Section("decoding", text, figures)


def _milliseconds(way: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(_TIMES):
        way()
    return (time.process_time() - began) / _TIMES * 1000
