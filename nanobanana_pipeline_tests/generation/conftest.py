"""A pipeline against a quick simulator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import Pipeline


@pytest.fixture
def pipeline(tmp_path: Path, simulator: Callable[..., SimulatorProcess]) -> Pipeline:
    """A pipeline whose simulator answers within milliseconds."""
    return Pipeline(tmp_path, simulator(latency=0.02, cached_picture=True))


@pytest.fixture
def pipelines(tmp_path: Path, simulator: Callable[..., SimulatorProcess]) -> Callable[..., Pipeline]:
    """`pipelines(knobs={...}, **simulator options)`."""

    def make(*, knobs: dict[str, Any] | None = None, **options: Any) -> Pipeline:
        options.setdefault("latency", 0.02)
        options.setdefault("cached_picture", True)
        return Pipeline(tmp_path, simulator(**options), knobs=knobs or {})

    return make
