"""Dagster's pages and daemon on this machine (`dagster dev`), as one group of processes that ends as a whole.

`dagster dev` by itself, ended from outside, leaves its code server and its runs behind; and runs must be told to stop
while there is still someone to take their answers in. What the group serves is in `definitions`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

import dagster as dg
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.storage.tags import GRPC_INFO_TAG
from filelock import FileLock, Timeout

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration.run_tags import Ended

_START_LIMIT_S: Final = 300.0
"""Ten seconds are usual; a busy machine has been seen to need two minutes."""
_RUNS_LIMIT_S: Final = 40.0
"""A run takes in the answers that are on their way, then writes its tables."""
_END_LIMIT_S: Final = 10.0
# The names are those of the project's own workspace.yaml, which is not installed: Dagster keeps what a person has
# turned on, and which runs belong together, by the location's name.
_WORKSPACE: Final = """\
load_from:
  - python_module:
      module_name: nanobanana_pipeline.definitions
      location_name: nanobanana_pipeline
"""
_DAEMON: Final = "dagster._daemon"
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNDER_WAY: Final = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class DagsterDev:
    """`dagster dev` with our definitions; a context manager that starts it and ends it with all its processes and runs.

    `home` is DAGSTER_HOME, which the environment must name; what Dagster says goes to the file `log`. `workspace` is
    another file of code locations than the one with this pipeline alone.
    """

    def __init__(self, home: Path, *, host: str, port: int, log: Path, workspace: Path | None = None) -> None:
        self.url = f"http://{host}:{port}"
        self._home = home
        self._host = host
        self._port = port
        self._log = log
        self._workspace = workspace
        self._process: subprocess.Popen[bytes] | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        """Start it, and wait until its pages answer. Raises `UserError` when they don't."""
        with ExitStack() as undo:
            # Two daemons on one home start everything twice, and Dagster says so in a log alone.
            undo.enter_context(_alone(self._home))
            undo.callback(self._end)
            self._begin()
            self._wait_for_pages()
            self._undo = undo.pop_all()
        return self

    def _begin(self) -> None:
        _refuse_taken_port(self._host, self._port)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell that starts us in the background has SIGINT ignored; children would inherit that, and never end.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        workspace = self._workspace or self._home / "nanobanana-workspace.yaml"
        if self._workspace is None:
            workspace.write_text(_WORKSPACE)
        # Unbroken: a process that was started, and is not known yet, would never be ended.
        with self._log.open("ab") as log, unbroken():
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [
                    *(sys.executable, "-m", "dagster", "dev", "--workspace", str(workspace)),
                    *("--host", self._host, "--port", str(self._port)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for us, who end the group in good order.
                start_new_session=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def wait(self) -> None:
        """Wait until it ends by itself, which it doesn't in good order. Raises `UserError` then."""
        if self._process is not None:
            self._process.wait()
            raise UserError(f"Dagster ended by itself: {self._last_words()}; all of it is in {self._log}")

    def _wait_for_pages(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise UserError(f"Dagster did not start: {self._last_words()}; all of it is in {self._log}")
            with suppress(OSError, ValueError), opener.open(f"{self.url}/server_info", timeout=5) as answer:
                if "dagster_webserver_version" in json.load(answer):
                    return
            time.sleep(0.2)
        raise UserError(f"Dagster did not start within {_START_LIMIT_S:.0f} s: see {self._log}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"

    def _end(self) -> None:
        if self._process is None:
            return
        try:
            if self._process.poll() is None:
                self._end_runs()
        finally:
            _end_group(self._process)
            self._process = None

    def _end_runs(self) -> None:
        """Stop the runs that were started from the pages gracefully, and wait for them.

        Those of a command in another terminal are its own, to end or to go on.
        """
        # The daemon first, or it would start the next runs in the queue as fast as these end. Those stay in the queue.
        for process in _children(self._process.pid if self._process else 0):
            if _DAEMON in process.command:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        with dg.DagsterInstance.from_config(str(self._home)) as instance:
            if not isinstance(instance.run_launcher, DefaultRunLauncher):
                return  # they are on other machines, and don't end with this one's pages
            deadline = time.monotonic() + _RUNS_LIMIT_S
            told: set[str] = set()
            while time.monotonic() < deadline:
                found = instance.get_runs(filters=dg.RunsFilter(statuses=_UNDER_WAY))
                runs = [run for run in found if GRPC_INFO_TAG in run.tags]
                if not runs:
                    return
                for run in runs:
                    if run.run_id not in told:
                        told.add(run.run_id)
                        if run.status is not dg.DagsterRunStatus.CANCELING:
                            # No word on its shard, which is gone on with when Dagster is there again.
                            instance.add_run_tags(run.run_id, Ended.BY_A_SIGNAL.of(run.run_id))
                        _terminate(instance, run.run_id)
                time.sleep(0.2)


def _terminate(instance: dg.DagsterInstance, run_id: str) -> None:
    # Whatever goes wrong here (the code server is gone, the run has just ended): the group's end comes after it.
    with suppress(Exception):
        instance.run_launcher.terminate(run_id)


@contextmanager
def _alone(home: Path) -> Generator[None]:
    """Be the only one that has Dagster open on `home`, as far as `DagsterDev` opens it."""
    lock = FileLock(home / ".dev.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another `nanobanana dev` has {home} open: use or end that one, or set DAGSTER_HOME to another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"can't listen on {host}:{port} ({error.strerror}): choose another with --port") from None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End every process of the group; at once, when somebody asks once more meanwhile."""
    try:
        _end_group_by(signal.SIGTERM, process)
    finally:
        with unbroken():
            _end_group_by(signal.SIGKILL, process)


def _end_group_by(number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _END_LIMIT_S
    if _group_lives(process.pid):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    while time.monotonic() < deadline:
        process.poll()
        if not _group_lives(process.pid):
            return
        time.sleep(0.05)


@contextmanager
def unbroken() -> Generator[None]:
    """Let signals wait that would end this process in the middle of the body."""
    came: list[int] = []

    def wait(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    handlers = {number: signal.getsignal(number) for number in _ENDING}
    heard = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, wait)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _group_lives(group: int) -> bool:
    """Whether a process of the group is alive; a zombie is not, whoever fails to collect it."""
    return any(process.group == group and not process.zombie for process in _processes())


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    group: int
    zombie: bool
    command: str


def _children(pid: int) -> Iterator[_Process]:
    return (process for process in _processes() if process.parent == pid)


def _processes() -> Iterator[_Process]:
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,state=,command="]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the system's own
        for line in listed.stdout.splitlines():
            pid, parent, group, state, *words = line.split(None, 4)
            yield _Process(int(pid), int(parent), int(group), state.startswith("Z"), " ".join(words))
        return
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (folder / "stat").read_text()
            # The command's name, in brackets, may itself hold spaces and brackets.
            state, parent, group = stat[stat.rindex(")") + 2 :].split()[:3]
            line = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
            yield _Process(int(folder.name), int(parent), int(group), state in {"Z", "X"}, line)
