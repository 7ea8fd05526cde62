"""`python -m nanobanana_pipeline_tests.chaos.endurance`: one process works 200,000 items of mixed faults off.

Nothing is killed here; what is looked for is what only shows with time: memory that grows, a slot or a connection that
is not given back, a task that nobody asks about. The worker's memory is sampled over time, and the end is judged like a
round of chaos. Ends after `--items` or `--seconds`, whichever comes first; exit 1 if any promise broke or memory grew.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.generation.client import Timeouts
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.stopping import RunInterruptedError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.settings import Settings, load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.chaos.faults import MIX
from nanobanana_pipeline_tests.chaos.verdict import judge
from nanobanana_pipeline_tests.chaos.worker import work_off

say = partial(print, flush=True)

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_SAMPLE_EVERY_S: Final = 2.0
_ROWS: Final = 12
_MOST_GROWTH: Final = 0.10
"""Memory of the last quarter of the time to that of the second: what is more than this is taken for a leak."""
_PUSHES_BACK: Final = {"rate_limited_429", "error_500", "unavailable_503_html"}
_PUSH_BACK_RATE: Final = 0.0005
"""As often as in a round of kills, they would have the throttle pace the run: an hour would see a tenth of it."""
_SHARD_SIZE: Final = 1000
_PEACE_RUNS: Final = 3
_PEACE_TIMEOUT_S: Final = 3600
_STOP_TIMEOUT_S: Final = 600
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """How things stood `seconds` after the start: tasks that the provider accepted, and the worker's memory."""

    seconds: float
    accepted: int
    rss_mb: float


def main() -> int:
    """Run, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(prog="endurance", description=__doc__)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, default=_REPOSITORY / "test-output" / "endurance.json")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # this program as the worker it starts
    parser.add_argument("--finish", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return _work(finish=arguments.finish)
    folder = Path(tempfile.mkdtemp(prefix="endurance-"))
    say(f"{arguments.items:,} items or {arguments.seconds:g} s, seed {arguments.seed}, in {folder}")
    _write_catalogue(folder, arguments.items)
    book = folder / "book.jsonl"
    with SimulatorProcess(book=book, latency=0.25, seed=arguments.seed, cached_picture=True) as simulator:
        simulator.set_faults([_paced(rule) | {"seed": arguments.seed} for rule in MIX])
        settings = _settings(folder, simulator)
        samples, finished = _endure(settings, simulator, arguments.seconds)
        simulator.set_faults([])
        for _ in range(_PEACE_RUNS):
            _peace(settings, everything=finished)
            simulator.advance(30)
    # Read from the file: at this size it is more than the simulator should have to say in one answer.
    with Workspace.open(settings) as workspace:
        verdict = judge(workspace, simulator.book, submits_in_the_air=(), finished=finished)
    growth = _growth(samples)
    if growth > _MOST_GROWTH:
        verdict.fail(f"memory grew by {growth:.0%} between the second and the last quarter of the time")
    say(_table(samples))
    for name, value in sorted(verdict.figures.items()):
        say(f"{name}: {value:,}")
    say(f"memory: {growth:+.1%} from the second to the last quarter of the time")
    for failure in verdict.failures:
        say(f"FAILED {failure} (see {folder})")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "seed": arguments.seed,
        "figures": verdict.figures,
        "growth": growth,
        "failures": verdict.failures,
        "samples": [asdict(sample) for sample in samples],
    }
    arguments.json.write_text(json.dumps(figures, indent=1))
    if not verdict.failures:
        shutil.rmtree(folder)
    return 1 if verdict.failures else 0


def _work(*, finish: bool) -> int:
    """Be the worker: with the patience of production, and nothing new when only open attempts are to be finished."""
    with suppress(RunInterruptedError):
        work_off("endurance", Patience(), Timeouts(), limit=0 if finish else None)
    return 0


def _endure(settings: Settings, simulator: SimulatorProcess, seconds: float) -> tuple[list[Sample], bool]:
    """Let the worker work while its memory is watched; the samples, and whether it came to the end of its work."""
    samples: list[Sample] = []
    began = time.monotonic()
    with _worker(settings, "--work") as process:
        while (running := process.poll() is None) and time.monotonic() - began < seconds:
            resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * _PAGE / 1e6
            accepted = simulator.stats()["accepted"]
            samples.append(Sample(round(time.monotonic() - began, 1), accepted, round(resident, 1)))
            time.sleep(_SAMPLE_EVERY_S)
        if running:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_TIMEOUT_S)
        elif process.returncode:
            raise SystemExit(f"the worker ended with {process.returncode}")
    return samples, not running


def _peace(settings: Settings, *, everything: bool) -> None:
    with _worker(settings, "--work", *([] if everything else ["--finish"])) as process:
        if process.wait(_PEACE_TIMEOUT_S):
            raise SystemExit(f"the worker that should finish ended with {process.returncode}")


@contextmanager
def _worker(settings: Settings, *arguments: str) -> Generator["subprocess.Popen[bytes]"]:
    assert settings.api_key is not None
    process = subprocess.Popen(
        [sys.executable, "-m", "nanobanana_pipeline_tests.chaos.endurance", *arguments],
        cwd=_REPOSITORY,
        stdout=subprocess.DEVNULL,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("NANOBANANA_")},
            "NANOBANANA_API_KEY": settings.api_key.get_secret_value(),
            "NANOBANANA_BASE_URL": str(settings.base_url),
            "NANOBANANA_CATALOGUE": settings.catalogue,
            "NANOBANANA_OUTPUT": settings.output,
            "NANOBANANA_SHARD_SIZE": str(_SHARD_SIZE),
            "NANOBANANA_TASK_DEADLINE_S": str(settings.task_deadline_s),
            "NANOBANANA_BUDGET_USD": str(settings.budget_usd),
            "NANOBANANA_MAX_IN_FLIGHT": str(settings.max_in_flight),
        },
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _settings(folder: Path, simulator: SimulatorProcess) -> Settings:
    return load_settings(
        api_key=simulator.api_key,
        base_url=simulator.base_url,
        catalogue=str(folder / "catalogue"),
        output=str(folder / "output"),
        shard_size=_SHARD_SIZE,
        task_deadline_s=5,
        budget_usd=1_000_000,
        max_in_flight=256,
    )


def _write_catalogue(folder: Path, items: int) -> None:
    (folder / "catalogue").mkdir()
    prompts = pa.table({"prompt": [f"endurance, picture {n}" for n in range(items)]})
    prompts = prompts.append_column("resolution", pa.array(["0.5K"] * items))
    pq.write_table(prompts, folder / "catalogue" / "endurance.parquet")


def _paced(rule: dict[str, Any]) -> dict[str, Any]:
    return rule | {"rate": _PUSH_BACK_RATE} if rule["fault"] in _PUSHES_BACK else rule


def _growth(samples: list[Sample]) -> float:
    quarter = len(samples) // 4
    if not quarter:
        return 0.0
    second = statistics.median(sample.rss_mb for sample in samples[quarter : 2 * quarter])
    last = statistics.median(sample.rss_mb for sample in samples[-quarter:])
    return last / second - 1


def _table(samples: list[Sample]) -> str:
    step = max(1, len(samples) // _ROWS)
    rows = [
        f"| {sample.seconds:,.0f} s | {sample.accepted:,} | {sample.rss_mb:.0f} MB |"
        for sample in samples[step - 1 :: step]
    ]
    return "\n".join(["| after | tasks accepted | resident memory |", "| ---: | ---: | ---: |", *rows])


if __name__ == "__main__":
    sys.exit(main())
