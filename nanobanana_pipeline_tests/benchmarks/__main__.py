"""`make bench`: CPU and time per item of the product, of the leanest loop, and of what a person would write.

The contenders run one after the other against one provider, in turns, so that a machine whose speed drifts is unfair to
all of them alike. Quote the ratios: absolute times are those of the machine and the moment. Start-up is included, so
that small numbers of items say little.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.simulator.process import SimulatorProcess

say = partial(print, flush=True)

CONTENDERS: Final = ("floor", "gather", "structure", "full")
_IMAGE_BYTES: Final = 277_000
_LATENCY_S: Final = 1.5
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure, print a table, and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=_REPOSITORY / "test-output" / "bench.json")
    arguments = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for number in range(arguments.rounds):
        for name in CONTENDERS:
            figures[name].append(_measure(name, arguments.items))
            say(f"round {number + 1}: {name}: {figures[name][-1]}")
    table = _table(figures)
    say("\n" + table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"items": arguments.items, "figures": figures}, indent=1))


def _measure(name: str, items: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    (folder / "catalogue").mkdir()
    (folder / "output").mkdir()
    prompts = pa.table({"prompt": [f"benchmark {number}" for number in range(items)]})
    pq.write_table(prompts, folder / "catalogue" / "bench.parquet")
    with SimulatorProcess(
        book=folder / "book.jsonl", latency=_LATENCY_S, cached_picture=True, picture_bytes=_IMAGE_BYTES
    ) as simulator:
        command = [sys.executable, "-m", "nanobanana_pipeline_tests.benchmarks.contenders", name]
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            [*command, simulator.base_url, simulator.api_key, str(folder / "output"), str(items)],
            cwd=_REPOSITORY,
            env={name: value for name, value in os.environ.items() if not name.startswith("NANOBANANA_")},
        )
        if process.wait(600):
            raise SystemExit(f"{name} ended with {process.returncode}")
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_ms_per_item": round(cpu / items * 1000, 2), "items_per_s": round(items / wall, 1)}


def _table(figures: dict[str, list[dict[str, float]]]) -> str:
    floor = statistics.median(run["cpu_ms_per_item"] for run in figures["floor"])
    lines = ["| contender | CPU ms an item | to the floor | items a second |", "| --- | ---: | ---: | ---: |"]
    for name, runs in figures.items():
        cpu = statistics.median(run["cpu_ms_per_item"] for run in runs)
        rate = statistics.median(run["items_per_s"] for run in runs)
        lines.append(f"| {name} | {cpu:.2f} | {cpu / floor:.2f} | {rate:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
