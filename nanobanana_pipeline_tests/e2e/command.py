"""The real `nanobanana` command in a process of its own, in a folder of its own, against a real simulator."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.simulator.process import SimulatorProcess

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "nanobanana_pipeline.cli")
# A session's first process takes its terminal, as a shell does; only then is it told when that is closed. It listens
# to that even if whoever started the tests (nohup, a service) doesn't.
ON_ITS_TERMINAL = (
    "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
LIMIT_S = 200


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    took_s: float

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)

    @property
    def only_line(self) -> str:
        """The one line of standard error that is no progress."""
        lines = [line for line in self.err.splitlines() if line.startswith("nanobanana: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@dataclass(slots=True)
class Place:
    """A folder with catalogues and an output, and the environment of the commands that run in it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    within: tuple[str, ...] = ()
    """The command that starts the commands."""

    @classmethod
    def with_provider(cls, folder: Path, simulator: SimulatorProcess, **settings: str) -> "Place":
        """A place whose commands work with `simulator`, as with a real provider: by key and base URL."""
        known = {"API_KEY": simulator.api_key, "BASE_URL": simulator.base_url, "SHARD_SIZE": "15", **settings}
        return cls(folder, {f"NANOBANANA_{name}": value for name, value in known.items()})

    def furnish(self, home: Path) -> None:
        """Give the output a copy of a prepared DAGSTER_HOME: making one takes a second or two each time."""
        shutil.copytree(home, self.output / ".dagster")

    @property
    def output(self) -> Path:
        """Where real work goes."""
        return self.folder / "data" / "output"

    def catalogue(self, prompts: Mapping[str, str], name: str = "c", **columns: Iterable[Any]) -> None:
        """Write a catalogue: prompts by id, and further columns."""
        target = self.folder / "data" / "catalogue" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "prompt_id": list(prompts),
            "prompt": list(prompts.values()),
            **{k: list(v) for k, v in columns.items()},
        }
        pq.write_table(pa.table(data), target)

    def start(self, *arguments: str, program: Sequence[str] = COMMAND[1:], **environment: str) -> subprocess.Popen[str]:
        """Start a command; its output is piped. `program` is run by Python in place of `nanobanana`."""
        return subprocess.Popen(
            [*self.within, sys.executable, *program, *arguments],
            cwd=self.folder,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_on_a_terminal(self, *arguments: str, **environment: str) -> tuple[subprocess.Popen[bytes], int]:
        """Start a command with a terminal of its own; returns the side that a terminal's window holds."""
        ours, its = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_TERMINAL, *COMMAND, *arguments],
            cwd=self.folder,
            env={**self._environment(environment), "TERM": "xterm"},
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        os.close(its)
        return process, ours

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        return {**kept, "PYTHONPATH": str(ROOT), **self.environment, **more}

    def run(self, *arguments: str, **environment: str) -> Ended:
        """Run a command to its end. No traceback may ever be seen."""
        return finish(self.start(*arguments, **environment))

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows that the command's own `query` gives."""
        ended = self.run("query", sql, "--format", "json")
        assert ended.code == 0, ended.err
        return ended.json


def finish(process: subprocess.Popen[str], *, number: signal.Signals | None = None) -> Ended:
    """Wait for a command (after sending it a signal, if one is given)."""
    began = time.monotonic()
    if number is not None:
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"not ended after {LIMIT_S} s:\n{out}\n{err}") from None
    assert "Traceback" not in out + err, err
    return Ended(process.returncode, out, err, time.monotonic() - began)


def submits(simulator: SimulatorProcess) -> list[str]:
    """The prompts that the provider took, by its own book."""
    return [row["prompt"] for row in simulator.book if row["event"] == "accepted"]


def billed(simulator: SimulatorProcess) -> Decimal:
    """The dollars that the provider billed, by its own book."""
    return sum((Decimal(row["cost_usd"]) for row in simulator.book if row["event"] == "billed"), Decimal(0))
