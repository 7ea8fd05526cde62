"""Parts of Dagster's interface that may still change, used all the same, since its version is pinned exactly."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg


@contextmanager
def accepted() -> Generator[None]:
    """Use beta and preview parts without a warning in everybody's terminal at each start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield
