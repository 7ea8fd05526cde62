"""Memory management that suits long runs of many threads: Python's cycle collector and the C library's allocator.

The collector looks through all that lives, and would find nothing: a quarter of a validation's time went to it, a fifth
of a registration's, a third of loading Dagster, and a tenth of a run of 2,000 items.
"""

import ctypes
import gc
import os
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


def share_allocator() -> None:
    """Have all of this process allocate from the same two places of the C library; to be called before Arrow is loaded.

    A thread of a shard leaves its place some 25 MB full of holes that no other thread fills: a run of 10,000 items took
    603 MB, and with two places 487. Python's lock lets one thread allocate at a time anyway. Arrow's own allocator
    keeps 10 to 30 MB that `give_back` can't reach: what entering a catalogue had taken stayed for the whole of a run.
    """
    os.environ.setdefault(_ARROWS_CHOICE, "system")  # noqa: TID251 - no setting of ours, and Arrow's only way
    _c_library("mallopt", _M_ARENA_MAX, 2)


def give_back() -> None:
    """Return to the system what was freed, as far as it is whole pages: after work that took much, and now and then.

    Takes some 35 ms with a thousand tasks in flight, and what is needed again costs a fault for each page.
    """
    _c_library("malloc_trim", 0)


def _c_library(function: str, *arguments: int) -> None:
    """Call what the GNU C library has and others may not."""
    found = getattr(ctypes.CDLL(None), function, None)
    if found is not None:
        found(*arguments)


_ARROWS_CHOICE = "ARROW_DEFAULT_MEMORY_POOL"
"""Arrow reads it when it first allocates."""
_M_ARENA_MAX = -8
"""As malloc.h has it."""
