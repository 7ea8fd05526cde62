"""What is on many machines, on one: all servers, Dagster's processes and the workers, from plain processes.

Each worker is a machine: a working folder, a DAGSTER_HOME and a process group of its own and, for root, its own
namespace of processes, so that nobody but the ledger and the pulse can tell whether it lives.

`python -m nanobanana_pipeline_tests.servers.many_machines --workers 3` starts it all to be tried out by hand.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from typing_extensions import override

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.servers.dagster_pages import LOCATION, DagsterPages
from nanobanana_pipeline_tests.servers.object_store import ObjectStoreProcess
from nanobanana_pipeline_tests.servers.services import HOST, Postgres, Redis, free_port, leaving_nothing
from nanobanana_pipeline_tests.servers.shared_broker import SharedBroker

ROOT: Final = Path(__file__).resolve().parents[2]
BUCKET: Final = "nanobanana"
_CONFIGURATION: Final = ROOT / "deploy" / "celery" / "dagster.yaml"
_START_LIMIT_S: Final = 300.0
_END_LIMIT_S: Final = 60.0
say = partial(print, flush=True)
_NANOBANANA: Final = (sys.executable, "-m", "nanobanana_pipeline.cli")
_UNDER_WAY: Final = """
query { runsOrError(filter: {statuses: [STARTED, STARTING, CANCELING]}) { ... on Runs { results { id } } } }"""


@dataclass
class Program:
    """A process and its group, with a working folder and a log of its own."""

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def log(self) -> Path:
        """What it has said."""
        return self.folder / f"{self.name}.log"

    @property
    def home(self) -> Path:
        """Its DAGSTER_HOME."""
        return Path(self.environment["DAGSTER_HOME"])

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The first process of its group."""
        assert self.process is not None
        return self.process.pid

    @property
    def main_pid(self) -> int:
        """The process that is meant to be told: not the one that only keeps a namespace."""
        pid = self.pid
        if self.command[0] != "unshare":
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return int(children.read_text().split()[0]) if children.exists() and children.read_text() else pid

    def start(self) -> None:
        """Start it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def signal(self, number: int) -> None:
        """Send its whole group a signal."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL its whole group."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, as a supervisor does, to the first process alone; returns its exit code."""
        if self.process is None:
            return 0
        with suppress(ProcessLookupError):
            os.kill(self.main_pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_LIMIT_S)
        self.kill()
        return self.process.returncode


class ManyMachines(DagsterPages):
    """All of it; a context manager that starts everything but the workers, and ends everything.

    `knobs` are settings of the pipeline, `simulator` options of the provider. The broker is a Redis of its own unless
    the URL of another is given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        knobs: Mapping[str, Any],
        simulator: Mapping[str, Any],
        pool: int = 12,
        dead_after_s: int = 60,
        broker: str | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._knobs = dict(knobs)
        self._simulator = dict(simulator)
        self.broker = SharedBroker(broker) if broker else Redis(self.folder / "broker")
        self._configuration = _configuration(pool, dead_after_s, self.broker.queue)
        self._port = free_port()
        self._code_port = free_port()
        self._stack = ExitStack()
        self.workers: list[Program] = []
        self.programs: list[Program] = []
        self.in_the_air: set[str] = set()
        """Attempts that were being submitted when a worker was killed, by whoever kills one."""
        super().__init__(f"http://{HOST}:{self._port}")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.postgres = stack.enter_context(Postgres(self.folder / "postgres"))
            stack.enter_context(self.broker)
            self.store = stack.enter_context(ObjectStoreProcess())
            self.simulator = stack.enter_context(SimulatorProcess(book=self.folder / "book.jsonl", **self._simulator))
            for name in ("nanobanana_ledger", "nanobanana_dagster"):
                self.postgres.make_database(name)
            self.store.make_bucket(BUCKET)
            # This process looks into the bucket by the same variables as all others.
            before = {name: os.environ.get(name) for name in self.store.environment()}
            stack.callback(_restore, before)
            os.environ.update(self.store.environment())
            self.pipeline = Pipeline(
                self.folder,
                self.simulator,
                self.postgres.url("nanobanana_ledger"),
                f"s3://{BUCKET}",
                self._knobs,
            )
            self.environment = {
                **{k: v for k, v in self.pipeline.environment.items() if k.startswith("NANOBANANA_")},
                **self.store.environment(),
                "DAGSTER_POSTGRES_URL": self.postgres.url("nanobanana_dagster", "postgresql+psycopg2"),
                "DAGSTER_BROKER_URL": self.broker.url,
                "DAGSTER_DISABLE_TELEMETRY": "yes",
                "PYTHONPATH": str(ROOT),
                "NO_PROXY": HOST,
            }
            stack.callback(self._end_programs)
            self._start_dagster()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    @override
    def log(self) -> str:
        """The last words of all programs."""
        return "\n".join(
            f"--- {program.name}\n{program.log.read_text(errors='replace')[-3000:]}"
            for program in [*self.programs, *self.workers]
            if program.log.exists()
        )

    @override
    def assert_alive(self) -> None:
        """Start what has ended by itself, as any supervisor would."""
        for program in self.programs:
            if not program.alive:
                program.start()

    def add_worker(
        self,
        *,
        processes: int = 2,
        queues: Sequence[str] = (),
        program: Sequence[str] = _NANOBANANA,
        apart: bool = True,
        **environment: str,
    ) -> Program:
        """A machine more; `program` is run in place of `nanobanana`.

        One that is not `apart` has a process group and folders of its own, and no namespaces: as several workers on
        one host, of which each can see whether the others live.
        """
        name = f"worker{len(self.workers) + 1}"
        queue_options = [option for queue in queues for option in ("--queue", queue)]
        command = [*program, "worker", "--processes", str(processes), "--name", name, *queue_options]
        worker = self._program(name, [*(as_machine(name) if apart else ()), *command], **environment)
        self.workers.append(worker)
        worker.start()
        return worker

    def states(self, catalogues: Sequence[str] | None = None) -> Counter[ItemState]:
        """The items (of some catalogues) by state."""
        counts: Counter[ItemState] = Counter()
        with self.pipeline.open() as workspace:
            for work in workspace.ledger.shard_work(catalogues):
                counts.update(work.states)
        return counts

    def at_rest(self) -> bool:
        """Whether no run is under way, as far as the web server can tell."""
        try:
            return not self.query(_UNDER_WAY)["runsOrError"]["results"]
        except AssertionError:
            # Each connection that it had pooled fails once after the database was restarted; a person reloads the page.
            return False

    def being_submitted(self) -> set[str]:
        """The attempts whose request is on its way now: their outcome may be lost with their worker."""
        query = sa.select(schema.attempts.c.attempt_id).where(schema.attempts.c.state == AttemptState.SUBMITTING)
        with self.pipeline.open() as workspace, workspace.ledger.database.read() as connection:
            return set(connection.execute(query).scalars())

    def _program(self, name: str, command: Sequence[str], **environment: str) -> Program:
        folder = self.folder / name
        home = folder / "dagster_home"
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text(self._configuration)
        return Program(name, command, folder, self.environment | {"DAGSTER_HOME": str(home)} | environment)

    def _start_dagster(self) -> None:
        # One process first: several at once would all make the tables.
        first = self._program("status", [*_NANOBANANA, "status"])
        self.programs = [first]
        first.start()
        assert first.process is not None
        first.process.wait(_START_LIMIT_S)
        workspace = self.folder / "workspace.yaml"
        workspace.write_text(
            f"load_from:\n  - grpc_server: {{host: {HOST}, port: {self._code_port}, location_name: {LOCATION}}}\n"
        )
        place = ["--host", HOST, "--port"]
        module = ["-m", "nanobanana_pipeline.definitions"]
        dagster = [sys.executable, "-m", "dagster"]
        self.programs = [
            self._program("code", [*dagster, "api", "grpc", *place, str(self._code_port), *module]),
            self._program(
                "web", [sys.executable, "-m", "dagster_webserver", "-w", str(workspace), *place, str(self._port)]
            ),
            self._program("daemon", [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)]),
        ]
        for program in self.programs:
            program.start()
        self.wait_for("Dagster's pages", self.loaded, _START_LIMIT_S)

    def _end_programs(self) -> None:
        programs = [*self.programs, *self.workers]
        try:
            for program in reversed(programs):
                if program.alive:
                    with suppress(ProcessLookupError):
                        os.kill(program.main_pid, signal.SIGTERM)
            for program in programs:
                program.stop()
        finally:  # whoever presses Ctrl-C once more does not want to wait
            for program in programs:
                program.kill()


def as_machine(name: str) -> list[str]:
    """The command that makes what follows it a machine of that name, as far as we may."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return []
    setting = f'hostname {name}; exec "$@"'
    apart = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    return [*apart, "sh", "-c", setting, name]


def _configuration(pool: int, dead_after_s: int, queue: str) -> str:
    """The one that is deployed, but for these."""
    text = _CONFIGURATION.read_text()
    for line, ours in (
        ("default_limit: 12", f"default_limit: {pool}"),
        ("dead_after_seconds: 60", f"dead_after_seconds: {dead_after_s}\n    default_queue: {queue}"),
    ):
        assert line in text, line
        text = text.replace(line, ours)
    return text


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def main() -> int:
    """Start it all, with workers, and stay until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="many_machines", description=__doc__)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="runs at once on each worker")
    parser.add_argument("--catalogue", type=Path, default=ROOT / "data" / "catalogue" / "sample.parquet")
    chosen = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if min(chosen.workers, chosen.processes) < 1:
        return _refused("--workers and --processes are 1 or more")
    if lacking := missing():
        return _refused(lacking)
    try:
        rows = pq.read_table(chosen.catalogue).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        return _refused(f"{chosen.catalogue} can't be read as Parquet: {error}")
    knobs = {"shard_size": 100, "budget_usd": 1000}
    say("starting PostgreSQL, Redis, an S3 server, the simulator and Dagster (half a minute) …")
    with (
        tempfile.TemporaryDirectory(prefix="nanobanana-machines-", ignore_cleanup_errors=True) as folder,
        # However often Ctrl-C is pressed, and whatever was just being started.
        leaving_nothing(),
        suppress(KeyboardInterrupt),
        ManyMachines(Path(folder), knobs=knobs, simulator={}, pool=chosen.workers * chosen.processes) as machines,
    ):
        for _ in range(chosen.workers):
            machines.add_worker(processes=chosen.processes)
        machines.pipeline.write(rows, chosen.catalogue.stem)
        _tell(machines)
        try:
            threading.Event().wait()
        finally:
            say("ending it all; runs stop in good order first (Ctrl-C once more: at once) …")
    return 0


def missing() -> str | None:
    """What is not installed here that this needs, and how to get it; None when nothing is missing."""
    if not (Redis.found() and Postgres.found()):
        return "PostgreSQL's and Redis's own programs are not installed: apt install postgresql redis-server"
    if find_spec("dagster_celery") is None:
        return "Celery is not installed: pip install -c constraints.txt -e '.[dev,postgres,celery]'"
    return None


def _refused(why: str) -> int:
    sys.stderr.write(f"many_machines: {why}\n")
    return 1


def _tell(machines: ManyMachines) -> None:
    """What a person needs to try it out."""
    say(f"pages: {machines.url}\nturn generation_sensor on there, or choose shards of `images`; kill what you like:")
    for program in [*machines.programs, *machines.workers]:
        say(f"  {program.name}: process {program.pid}, log {program.log}")
    say("for `nanobanana status`, `query`, one more `nanobanana worker` and the like in another terminal:")
    (_, _, daemon) = machines.programs
    for name, value in {**machines.environment, "DAGSTER_HOME": str(daemon.home)}.items():
        say(f"  export {name}='{value}'")
    say("Ctrl-C ends it all")


if __name__ == "__main__":
    sys.exit(main())
