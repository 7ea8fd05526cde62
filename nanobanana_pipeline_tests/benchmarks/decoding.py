"""What looking at a picture costs: its structure, every pixel, and the decoder alone, on the same picture."""

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from PIL import Image

from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.storage.verification import verify_image
from nanobanana_pipeline_tests.benchmarks.measuring import Section, table
from nanobanana_pipeline_tests.benchmarks.provider import photo

_TIMES: Final = 40
_ROUNDS: Final = 5
_THREADS: Final = 4
"""As a shard has for its pictures: beside each other they have less of the processor's caches."""


def measure() -> Section:
    """Milliseconds of CPU for each, the least of some rounds, by one thread and by four at once."""
    data, limits = photo(), load_spec().limits
    ways: dict[str, Callable[[], object]] = {
        "verify = structure": lambda: verify_image(data, content_type="image/jpeg", mode="structure", limits=limits),
        "verify = full (the default)": lambda: verify_image(
            data, content_type="image/jpeg", mode="full", limits=limits
        ),
        "Pillow's decoder alone": lambda: Image.open(io.BytesIO(data)).load(),
    }
    figures = {
        name: {threads: min(_milliseconds(way, threads) for _ in range(_ROUNDS)) for threads in (1, _THREADS)}
        for name, way in ways.items()
    }
    rows = [[name, *(f"{milliseconds:.2f}" for milliseconds in by.values())] for name, by in figures.items()]
    header = ["what", "CPU ms a picture", f"in {_THREADS} threads at once"]
    text = f"A JPEG of 1024 x 1024 pixels and {len(data):,} bytes.\n\n" + table(header, rows)
    return Section("decoding", text, figures)


def _milliseconds(way: Callable[[], object], threads: int) -> float:
    def some(_: int) -> None:
        for _ in range(_TIMES):
            way()

    with ThreadPoolExecutor(threads) as pool:
        began = time.process_time()
        list(pool.map(some, range(threads)))
        return (time.process_time() - began) / _TIMES / threads * 1000
