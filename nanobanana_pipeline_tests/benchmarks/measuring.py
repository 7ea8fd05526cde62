"""Measuring whole processes, and writing down what was measured. What is measured is the other modules' business."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
FIGURES: Final = ROOT / "test-output" / "bench"
PAGE: Final = ROOT / "docs" / "performance.md"

say = partial(print, flush=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process and its children took: seconds of CPU (user and system), seconds of the clock, and memory."""

    cpu_s: float
    wall_s: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Section:
    """One group of figures: as `text` (Markdown) for people and the page, as `figures` for programs."""

    name: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)

    def save(self, *, on_page: bool) -> None:
        """Write the figures as JSON and, if wanted, the text between the page's markers of this section."""
        FIGURES.mkdir(parents=True, exist_ok=True)
        (FIGURES / f"{self.name}.json").write_text(json.dumps(self.figures, indent=1) + "\n")
        if on_page:
            marks = f"<!-- bench:{self.name} -->", f"<!-- /bench:{self.name} -->"
            page = PAGE.read_text()
            between = re.compile(f"{marks[0]}.*?{marks[1]}", re.DOTALL)
            if not between.search(page):
                raise SystemExit(f"{PAGE} has no markers {marks[0]} … {marks[1]}: put them where the figures belong")
            PAGE.write_text(between.sub(lambda _: f"{marks[0]}\n{self.text}\n{marks[1]}", page))


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def measured(command: Sequence[str], *, cwd: Path = ROOT, knobs: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end. It gets the settings in `knobs` alone, and every core but the provider's.

    What the process waits for counts as its own. Raises `SystemExit` when it fails.
    """
    began = time.monotonic()
    process = started(command, cwd=cwd, knobs=knobs)
    return ended(process, began)


def started(
    command: Sequence[str], *, cwd: Path = ROOT, knobs: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command as `measured` does."""
    process = subprocess.Popen(command, cwd=cwd, env=_environment(knobs), stdout=subprocess.DEVNULL)
    pin(process.pid, provider=False)
    return process


def ended(process: subprocess.Popen[bytes], began: float) -> Cost:
    """Wait for the end of a command that was `started` when the monotonic clock said `began`. Raises `SystemExit`."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return Cost(used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / _RSS_UNITS_PER_MB)


def finished(command: Sequence[str], *, knobs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command as `measured` does; what it says about itself, which is one JSON object."""
    process = subprocess.run(command, cwd=ROOT, env=_environment(knobs), stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(process.stdout)


def _environment(knobs: Mapping[str, str] | None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NANOBANANA_")}
    # As installed: with byte code, which a flag of the one who measures may keep from being written.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return (
        environment | {"PYTHONPATH": str(ROOT)} | {f"NANOBANANA_{name}": value for name, value in (knobs or {}).items()}
    )


# Kilobytes on Linux, bytes on macOS.
_RSS_UNITS_PER_MB: Final = 1024 if sys.platform == "linux" else 1024 * 1024


def pin(pid: int, *, provider: bool) -> None:
    """Give the provider the last core for itself, and all others to what is measured; nothing where that can't be."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, cores[-1:] if provider else cores[:-1])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
