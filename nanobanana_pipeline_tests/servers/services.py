"""A broker and a PostgreSQL server of one's own, to be stopped, killed and started again as no shared one may be."""

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from typing_extensions import override

HOST: Final = "127.0.0.1"
_PORTS: Final = (20_000, 30_000)
_START_LIMIT_S: Final = 200.0
_END_LIMIT_S: Final = 60.0
_POSTGRES_BIN: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)


_PR_SET_CHILD_SUBREAPER: Final = 36


@contextmanager
def leaving_nothing() -> Generator[None]:
    """Whatever the body starts, and whatever that starts, is gone at the end, however often a signal breaks in.

    For a program's main thread, at its end: it listens to no signal after it.
    """
    adopt_orphans()
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while left := children():
            for child in left:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(child, 0)


def adopt_orphans() -> None:
    """From now on, what children of children leave behind is this process's own."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """Those of all threads of this process; those too that are over and were not asked after."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended, whose children are another's now
            found += map(int, path.read_text().split())
    return found


def free_port() -> int:
    """A port that nobody listens on now, and that no system gives to whoever asks for any.

    A server that needs a while to start may find another on its port; gRPC's even share it, and answer half each.
    """
    # The system's chance: tests that seed Python's own, for numbers that are the same each time, run beside this.
    chance = random.SystemRandom()
    while True:
        port = chance.randint(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


class Service(ABC):
    """A server in a process group of its own; a context manager. It comes back on its port with what it had kept."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.prepare()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0
            )
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / f"{self.name}.log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"{self.name} did not start"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        process = self._process
        if process is None:
            return
        try:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_LIMIT_S)
        finally:  # it does not, or somebody does not want to wait
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return self.ready()
        return False

    def prepare(self) -> None:  # noqa: B027 - most need none
        """What comes before the first start."""

    def ready(self) -> bool:
        """Whether it serves, once its port is open."""
        return True

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """How it is started in the foreground."""


class Redis(Service):
    """A Redis of one's own, which keeps nothing when it is killed and everything when it is stopped."""

    name = "redis"
    queue = "nanobanana"

    @staticmethod
    def found() -> bool:
        """Whether it is installed."""
        return shutil.which("redis-server") is not None

    @property
    def url(self) -> str:
        """As clients name it."""
        return f"redis://{HOST}:{self.port}/0"

    @override
    def command(self) -> Sequence[str | Path]:
        """Saves at its end alone."""
        # The empty file name in the save points would mean "never, not even at the end".
        return ["redis-server", "--bind", HOST, "--port", str(self.port), "--dir", self.folder, "--save", "3600 1"]


class Postgres(Service):
    """A PostgreSQL cluster of one's own. Not run as root, whoever we are: PostgreSQL refuses."""

    name = "postgres"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # Where its own user may go; a test's folder lies under one that is closed to others.
        self._data = Path(tempfile.mkdtemp(prefix="nanobanana-postgres-"))
        self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if _is_root() else []

    @staticmethod
    def found() -> bool:
        """Whether it is installed."""
        return bool(_POSTGRES_BIN)

    def url(self, database: str, driver: str = "postgresql") -> str:
        """As SQLAlchemy names it."""
        return f"{driver}://postgres@{HOST}:{self.port}/{database}"

    def make_database(self, name: str) -> None:
        """Make an empty database."""
        subprocess.run([*self._psql(), f"CREATE DATABASE {name}"], check=True, capture_output=True)

    @override
    def prepare(self) -> None:
        """Make the cluster. Its log must be on the disk at each commit, as in real life: the ledger lives by it."""
        if _is_root():
            shutil.chown(self._data, "postgres", "postgres")
        command = [_POSTGRES_BIN[-1] / "initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run([*self._as_user, *command], check=True, capture_output=True, cwd="/")

    @override
    def command(self) -> Sequence[str | Path]:
        """Sockets beside the data: the system's folder is the shared server's."""
        settings = ["-h", HOST, "-p", str(self.port), "-k", self._data, "-c", "max_connections=200"]
        return [*self._as_user, _POSTGRES_BIN[-1] / "postgres", "-D", self._data, *settings]

    @override
    def ready(self) -> bool:
        """It listens some time before it serves."""
        return subprocess.run([*self._psql(), "SELECT 1"], check=False, capture_output=True).returncode == 0

    @override
    def stop(self, number: int = signal.SIGINT) -> None:
        """End every connection at once, and it."""
        super().stop(number)

    def restart(self) -> None:
        """Away for a moment, as in an upgrade."""
        self.stop()
        self.start()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            shutil.rmtree(self._data, ignore_errors=True)

    def _psql(self) -> list[str | Path]:
        place = ["-h", HOST, "-p", str(self.port), "-U", "postgres", "-d", "postgres"]
        return [_POSTGRES_BIN[-1] / "psql", *place, "-qAtX", "-c"]


def _is_root() -> bool:
    return os.geteuid() == 0
