"""Python's cycle collector, kept out of the way where prompts are made and entered by the million."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Generator[None]:
    """Keep the collector from looking through thousands of new objects that can have no cycles.

    Without this a quarter of a validation's time went to it, and a fifth of a registration's.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
