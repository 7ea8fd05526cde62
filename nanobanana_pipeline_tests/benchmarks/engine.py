"""The product whole, as `nanobanana run`, beside the leanest loop and what a person would write.

The contenders run one after the other against a fresh provider each, in turns, so that a machine whose speed drifts is
unfair to all of them alike. Quote the ratios: times are those of the machine and the moment.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline_tests.benchmarks.measuring import Section, measured, python, say, table
from nanobanana_pipeline_tests.benchmarks.provider import running_provider

CONTENDERS: Final = {
    "floor": "leanest loop: aiohttp, nothing else",
    "bare": "the same over httpx-aiohttp",
    "gather": "gather over httpx as it comes",
    "threads": "64 threads over requests",
    "structure": "product, verify = structure",
    "full": "product, verify = full (the default)",
}
_PEERS: Final = ("floor", "bare", "gather", "threads")
_LARGEST: Final = {"gather": 1000, "threads": 1000}
"""Of those that would take a quarter of an hour for ten thousand items: their cost an item only grows with the size."""
_IN_FLIGHT: Final = 1000
_SIGMA: Final = 0.15
"""Spread of the latencies: the product, too, then asks about three times an item."""
_GAP: Final = 0.4
"""The peers' gap between polls, as a share of the median latency: it makes about three polls an item."""


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's run. `lag_s` is the mean time from a task's end to the poll that found it."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    polls: float
    lag_s: float
    provider_busy: float


def measure(sizes: Sequence[int], rounds: int, latency_s: float, names: Sequence[str] = tuple(CONTENDERS)) -> Section:
    """Every contender at every size, in turns."""
    with tempfile.TemporaryDirectory(prefix="nanobanana-bench-") as folder:
        return _measure(Path(folder), sizes, rounds, latency_s, names)


def _measure(folder: Path, sizes: Sequence[int], rounds: int, latency_s: float, names: Sequence[str]) -> Section:
    runs: dict[str, dict[int, list[Run]]] = {
        name: {size: [] for size in sizes if size <= max(min(sizes), _LARGEST.get(name, size))} for name in names
    }
    for number in range(rounds):
        for size in sizes:
            for name in (name for name in names if size in runs[name]):
                run = _run(folder / f"{name}-{size}-{number}", name, size, latency_s)
                runs[name][size].append(run)
                say(f"  round {number + 1}, {size:>6,} items, {name}: {run.cpu_s:.1f} s CPU, {run.wall_s:.1f} s")
    figures = {name: {str(size): list(map(asdict, of)) for size, of in by.items()} for name, by in runs.items()}
    return Section("engine", _text(runs, latency_s), {"latency_s": latency_s, "sigma": _SIGMA, "runs": figures})


def _run(folder: Path, name: str, size: int, latency_s: float) -> Run:
    folder.mkdir()
    try:
        with running_provider(latency=latency_s, sigma=_SIGMA) as provider:
            if name in _PEERS:
                arguments = (provider.base_url, str(folder), str(size), str(_IN_FLIGHT), str(_GAP * latency_s))
                cost = measured(python("nanobanana_pipeline_tests.benchmarks.peers", name, *arguments))
            else:
                knobs = product_knobs(folder, provider.base_url, size, name)
                cost = measured(python("nanobanana_pipeline.cli", "run", "--json"), knobs=knobs)
            seen = provider.stats()
        if seen["ended"] != size or seen["images"] < size:
            raise SystemExit(f"{name} made {seen['images']} of {size} images")
    finally:
        _empty(folder)
    return Run(
        cost.cpu_s,
        cost.wall_s,
        cost.peak_mb,
        polls=seen["polls"] / size,
        lag_s=seen["lag_s"] / size,
        provider_busy=seen["cpu_s"] / cost.wall_s,
    )


def _empty(folder: Path) -> None:
    """Free what the files of a run took, and leave the files until all are measured.

    An ext4 without a journal gives no file the place of one that was removed within five minutes, and looks for another
    past each of those: with thousands of pictures removed before, making one took a run of the product 0.6 ms of CPU.
    """
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)


def product_knobs(folder: Path, base_url: str, prompts: int, verify: str) -> dict[str, str]:
    """The settings of a run on a fresh catalogue of so many prompts."""
    write_catalogue(folder / "catalogue" / "bench.parquet", prompts)
    return {
        # As long as keys are: whether one of few letters stands in a text takes longer to see.
        "API_KEY": "no-key-but-as-long-as-one",
        "BASE_URL": base_url,
        "CATALOGUE": str(folder / "catalogue"),
        "OUTPUT": str(folder / "output"),
        "BUDGET_USD": "1000000",
        "MAX_IN_FLIGHT": str(_IN_FLIGHT),
        "VERIFY": verify,
    }


def write_catalogue(path: Path, prompts: int) -> None:
    """A catalogue of so many prompts."""
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"prompt": [f"benchmark {number}" for number in range(prompts)]}), path)


def _text(runs: dict[str, dict[int, list[Run]]], latency_s: float) -> str:
    slopes = {name: _slope(by) for name, by in runs.items()}
    floor, gather = slopes.get("floor"), slopes.get("gather")
    rows: list[list[object]] = []
    for name, by in runs.items():
        largest = max(by)
        slope, start_s = slopes[name], _median([run.cpu_s for run in by[min(by)]])
        rows.append(
            [
                CONTENDERS[name],
                f"{slope * 1000:.2f}",
                f"{slope / floor:.2f}" if floor else "",
                f"{gather / slope:.1f}" if gather else "",
                f"{start_s:.1f}",
                f"{_median([largest / run.wall_s for run in by[largest]]):.0f}",
                f"{_median([run.polls for run in by[largest]]):.1f}",
                f"{_median([run.lag_s for run in by[largest]]) / latency_s * 100:.0f} %",
                f"{_median([run.peak_mb for run in by[largest]]):.0f}",
                f"{_median([run.provider_busy for run in by[largest]]) * 100:.0f} %",
            ]
        )
    header = [
        "program",
        "CPU ms an item",
        "x floor",
        "gather / it",
        "start-up CPU s",
        "items a second",
        "polls an item",
        "lag of latency",
        "peak MB",
        "provider busy",
    ]
    most = max(runs.values(), key=len)
    sizes = ", ".join(f"{size:,}" for size in most)
    rounds = len(next(iter(most.values())))
    fewer = "; ".join(f"{CONTENDERS[name]}: up to {max(by):,}" for name, by in runs.items() if len(by) < len(most))
    return (
        f"Sizes {sizes}{f' ({fewer})' if fewer else ''}; {rounds} round(s) in turns, medians; latency {latency_s:g} s "
        f"(log-normal, sigma {_SIGMA}), {_IN_FLIGHT:,} in flight. CPU an item is the slope between the smallest and "
        "the largest size, start-up the whole of the smallest.\n\n" + table(header, rows)
    )


def _slope(by_size: dict[int, list[Run]]) -> float:
    """CPU seconds that one more item costs."""
    small, large = min(by_size), max(by_size)
    medians = [_median([run.cpu_s for run in by_size[size]]) for size in (small, large)]
    return (medians[1] - medians[0]) / (large - small) if large > small else medians[0] / small


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
