"""What a run holds in memory: with ten thousand tasks in the air, and over a run ten times as long.

The run with everything in the air is killed there and started again, so that what a resumption takes is seen as well.
"""

import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from nanobanana_pipeline_tests.benchmarks.engine import product_knobs
from nanobanana_pipeline_tests.benchmarks.measuring import Section, ended, measured, python, say, started, table
from nanobanana_pipeline_tests.benchmarks.provider import RunningProvider, running_provider

_COMMAND: Final = python("nanobanana_pipeline.cli", "run", "--json")
_SHARDS_AT_ONCE: Final = 4
"""Of `nanobanana run`: four shards must hold all that is to be in the air."""
_TASK_S: Final = 120.0
"""Long enough that the first tasks are still at work when the last are sent."""
_PATIENCE_S: Final = 600.0
_LOOK_S: Final = 0.1


def measure(in_flight: int, long_run: int) -> Section:
    """`in_flight` tasks at once, killed and resumed; then a run of `long_run` items beside one of a tenth."""
    figures = _all_at_once(in_flight)
    say(f"  {in_flight:,} in flight: {figures}")
    lengths = (long_run // 10, long_run)
    for items in lengths:
        figures[f"run_of_{items}"] = peak = _run_of(items)
        say(f"  {items:,} items: {peak:.0f} MB")
    short, long = (figures[f"run_of_{items}"] for items in lengths)
    rows: list[list[object]] = [
        [f"{figures['most_open']:,} tasks in flight (asked for: {in_flight:,})", f"{figures['peak_mb']:.0f} MB", "600"],
        [
            "the same run, killed there and started again: to its first poll",
            f"{figures['first_poll_cpu_s']:.1f} s CPU, {figures['first_poll_s']:.1f} s",
            "5 s",
        ],
        ["what was resumed, to its end", f"{figures['resumed_mb']:.0f} MB", "600"],
        [f"a run of {lengths[0]:,} items, 1,000 in flight", f"{short:.0f} MB", ""],
        [f"a run of {lengths[1]:,} items, 1,000 in flight", f"{long:.0f} MB ({long / short - 1:+.0%})", "± 10 %"],
    ]
    text = "Resident memory at its highest, of `nanobanana run` whole; pictures of 277 KB.\n\n"
    return Section("memory", text + table(["what", "measured", "target"], rows), figures)


def _all_at_once(in_flight: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-memory-"))
    try:
        with running_provider(latency=_TASK_S, sigma=0.1) as provider:
            knobs = product_knobs(folder, provider.base_url, in_flight, "full") | {
                "MAX_IN_FLIGHT": str(in_flight),
                "SHARD_SIZE": str(-(-in_flight // _SHARDS_AT_ONCE)),
            }
            process = started(_COMMAND, knobs=knobs)
            _wait_for(provider, "submits", in_flight)
            # Killed before the last answers are entered, it would leave unknown outcomes, which nothing resumes.
            _await(lambda: not _submitting(folder / "output" / "ledger.sqlite"), "answers entered")
            peak_mb = _peak_mb(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
            before = provider.stats()
            began = time.monotonic()
            process = started(_COMMAND, knobs=knobs)
            _wait_for(provider, "polls", before["polls"] + 1)
            first_poll_s, first_poll_cpu_s = time.monotonic() - began, _cpu_s(process.pid)
            resumed = ended(process, began)
            seen = provider.stats()
        if seen["submits"] != in_flight or seen["ended"] != in_flight:
            raise SystemExit(f"{seen['submits']} submits of {in_flight} items, {seen['ended']} found ended")
        return {
            "most_open": seen["most_open"],
            "peak_mb": peak_mb,
            "first_poll_s": first_poll_s,
            "first_poll_cpu_s": first_poll_cpu_s,
            "resumed_mb": resumed.peak_mb,
        }
    finally:
        shutil.rmtree(folder)


def _run_of(items: int) -> float:
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-memory-"))
    try:
        with running_provider(latency=5, sigma=0.25) as provider:
            return measured(_COMMAND, knobs=product_knobs(folder, provider.base_url, items, "structure")).peak_mb
    finally:
        shutil.rmtree(folder)


def _wait_for(provider: RunningProvider, what: str, count: int) -> None:
    _await(lambda: provider.stats()[what] >= count, f"{count:,.0f} {what}")


def _await(come: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + _PATIENCE_S
    while not come():
        if time.monotonic() > ends:
            raise SystemExit(f"no {what} in {_PATIENCE_S:g} s")
        time.sleep(_LOOK_S)


def _submitting(ledger: Path) -> int:
    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute("SELECT count(*) FROM attempts WHERE state = 'submitting'").fetchone()[0]


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def _cpu_s(pid: int) -> float:
    # Clock ticks of a hundredth of a second, in user and in system mode: fields 14 and 15 of the line.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
