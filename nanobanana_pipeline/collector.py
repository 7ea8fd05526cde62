"""Python's cycle collector, kept out of the way where it would find nothing: it looks through all that lives.

What it took: a quarter of a validation's time, a fifth of a registration's, a third of loading Dagster, and a tenth of
a run of 2,000 items.
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

_THRESHOLDS = (10_000, 20, 50)
"""Of its three generations; Python's own are 700, 10 and 10."""


@contextmanager
def collector_paused() -> Generator[None]:
    """Keep the collector from looking through thousands of new objects that can have no cycles, or that all stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def spare_what_is_loaded() -> None:
    """Have the collector never look again at what there is by now, and come less often; once for a process.

    To be called when everything is imported: hundreds of thousands of objects, which live as long as the process.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
