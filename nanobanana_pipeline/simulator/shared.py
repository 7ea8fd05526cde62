"""One simulator for every process that works in one folder, for as long as any of them does.

Dagster runs each shard in a process of its own, and all of them must meet the same provider: a task that one run
submitted is polled by the next. So whoever comes first starts the simulator, in a process that belongs to nobody, and
it ends when nobody uses it any more, however its users ended. Its book stays, and with it its tasks.

`python -m nanobanana_pipeline.simulator.shared FOLDER` is that process; `shared_simulator` starts it.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orjson

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.simulator.options import DEFAULT_KEY
from nanobanana_pipeline.simulator.process import SimulatorProcess

BOOK: Final = "book.jsonl"

# Locks of the kernel's: it lets go of them for a process that is killed.
_USERS: Final = "users.lock"
"""Held shared by each user; by the host alone while it ends, so that nobody is sent to a simulator about to be gone."""
_STARTING: Final = "starting.lock"
"""Held by the one user that looks whether there is a simulator, and starts it."""
_HOST: Final = "host.lock"
"""Held by the host as long as it lives: an endpoint noted without it is a leftover."""

_ENDPOINT: Final = "endpoint.json"
_LOG: Final = "simulator.log"
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
_WATCH_EVERY_S: Final = 0.25
_LOOK_EVERY_S: Final = 0.05
_END_LIMIT_S: Final = 30.0
"""Three times what a simulator is given to end in."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running simulator is, and how to speak to it."""

    base_url: str
    images_url: str
    book: str
    api_key: str = DEFAULT_KEY


@contextmanager
def shared_simulator(folder: str | Path) -> Generator[Endpoint]:
    """The simulator of `folder`, started if it isn't running, for the length of the context.

    Safe for any number of processes and threads at once. Raises `UserError` when it can't be started.
    """
    place = Path(folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / _USERS, fcntl.LOCK_SH):
        with _locked(place / _STARTING, fcntl.LOCK_EX):
            if not _is_held(place / _HOST):
                _start_host(place)
            endpoint = _noted(place)
        if endpoint is None:
            raise UserError(f"the simulator's {place / _ENDPOINT} is gone: end what uses it, and try again")
        yield endpoint


def wait_for_end(folder: str | Path) -> None:
    """Wait until no simulator of `folder` runs, or somebody uses it: for who must leave no process behind.

    One that nobody uses ends by itself, a moment later.
    """
    place = Path(folder).absolute()
    deadline = time.monotonic() + _END_LIMIT_S
    while (place / _HOST).exists() and _is_held(place / _HOST) and not _is_used(place):
        if time.monotonic() >= deadline:
            return
        time.sleep(_LOOK_EVERY_S)


def host(place: Path, on_ready: Callable[[], None]) -> None:
    """Run the simulator of `place` until nobody uses it, it ends, or a signal comes. The caller holds `_HOST`."""
    # Turned into an exception, so that the simulator is ended in good order.
    signal.signal(signal.SIGTERM, _exit)
    with _simulator(place) as simulator:
        endpoint = Endpoint(simulator.base_url, simulator.images_url, str(simulator.book_path), simulator.api_key)
        draft = place / f".{_ENDPOINT}"
        draft.write_bytes(orjson.dumps(asdict(endpoint)))
        draft.replace(place / _ENDPOINT)
        on_ready()
        with _locked(place / _USERS) as users:
            while _runs(simulator) and not _taken(users):
                time.sleep(_WATCH_EVERY_S)
            # Both locks are let go of only when the simulator has ended.
            simulator.stop()


@contextmanager
def _simulator(place: Path) -> Generator[SimulatorProcess]:
    """Start the simulator, on the ports that it had before if they are free: the URLs of its pictures go on to hold."""
    before = _noted(place)
    ports: list[dict[str, Any]] = [{}]
    if before is not None:
        ports.insert(0, {"port": _port(before.base_url), "images_port": _port(before.images_url)})
    simulator = _started(place, ports)
    try:
        yield simulator
    finally:
        simulator.stop()


def _started(place: Path, ports: list[dict[str, Any]]) -> SimulatorProcess:
    simulator = SimulatorProcess(book=place / BOOK, **ports[0])
    try:
        simulator.start()
    except UserError:
        if len(ports) == 1:
            raise
        return _started(place, ports[1:])
    return simulator


def _start_host(place: Path) -> None:
    log = place / _LOG
    with log.open("wb") as said:
        # It leaves once the host is ready, or has failed: the host itself is nobody's child.
        launcher = subprocess.run(  # noqa: S603 (our own program)
            [sys.executable, "-m", "nanobanana_pipeline.simulator.shared", str(place)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd=_PACKAGE_ROOT,
            check=False,
        )
    if launcher.returncode:
        reason = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise UserError(f"the simulator did not start: {reason or 'it ended without a word'}")


def _launch(folder: str) -> int:
    """Leave a host running in a session of its own; the exit code, once it is ready or has ended."""
    place = Path(folder).absolute()
    ready, say_ready = os.pipe()
    # Taken before there is a host, which inherits it, and closed by the kernel alone: whoever waits for its end must
    # overlook neither one that begins nor one that is not quite gone.
    fcntl.flock(os.open(place / _HOST, os.O_RDWR | os.O_CREAT, 0o644), fcntl.LOCK_EX)
    if os.fork() == 0:
        os.setsid()
        try:
            host(place, on_ready=lambda: os.close(say_ready) if os.write(say_ready, b"!") else None)
        except UserError as error:
            sys.stderr.write(f"{error}\n")
        return 0
    os.close(say_ready)
    return 0 if os.read(ready, 1) else 1


def _noted(place: Path) -> Endpoint | None:
    try:
        return Endpoint(**orjson.loads((place / _ENDPOINT).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def _locked(path: Path, how: int | None = None) -> Generator[int]:
    """Open a lock file and hold its lock (None: not yet)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if how is not None:
            fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    """Take the lock (alone, if not told otherwise), if nobody's holding it forbids that."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    with _locked(path) as descriptor:
        return not _taken(descriptor)


def _is_used(place: Path) -> bool:
    # One that looks at a time: two would take each other for users.
    with _locked(place / _STARTING, fcntl.LOCK_EX), _locked(place / _USERS) as users:
        # Not to be had alone: a user has it, or the host, which shares it with nobody while it ends.
        return not _taken(users) and _taken(users, fcntl.LOCK_SH)


def _runs(simulator: SimulatorProcess) -> bool:
    try:
        return simulator.pid > 0
    except UserError:
        return False


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(_launch(sys.argv[1]))
