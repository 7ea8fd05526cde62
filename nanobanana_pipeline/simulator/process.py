"""The simulator as a child process, for the demo, `dev` and tests."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.simulator.billing import Row, read_book
from nanobanana_pipeline.simulator.options import DEFAULT_KEY, SimulatorOptions

_START_TIMEOUT_S = 120.0
"""Ten times what a start takes on a machine with ten times the work that it can do."""
_STOP_TIMEOUT_S = 10.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class SimulatorProcess:
    """A simulator in a process of its own; `with` starts and stops it.

    It ends with its parent, however that ends: it watches a pipe that only the parent holds. `start` after `stop` or
    `kill` comes back on the same ports with the same book, as a provider does after a crash.
    """

    def __init__(self, *, api_key: str = DEFAULT_KEY, port: int = 0, **options: Any) -> None:
        """Take the options of `SimulatorOptions`; a book that is not given is a file that goes with this object."""
        if options.get("book") is None:
            folder = tempfile.mkdtemp(prefix="nanobanana-simulator-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            options["book"] = Path(folder) / "book.jsonl"
        # Absolute, as the child runs in another working folder.
        options |= {
            name: Path(options[name]).absolute() for name in ("book", "faults") if options.get(name) is not None
        }
        self._options = SimulatorOptions(api_key=api_key, port=port, watch_stdin=True, **options)
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None
        self.api_key = api_key
        self.base_url = ""
        self.images_url = ""
        self.book_path: Path = options["book"]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the running simulator."""
        return self._running().pid

    @property
    def book(self) -> list[Row]:
        """Every row of the billing book; while the simulator runs, all that is due by now is in it."""
        if self._process is not None and self._process.poll() is None:
            return self._ask("GET", "/simulator/book")
        return list(read_book(self.book_path)) if self.book_path.exists() else []

    def start(self) -> None:
        """Start the process and wait until it listens. Raises `UserError` when it ends instead."""
        try:
            self._start()
        except BaseException:
            self.kill()
            raise

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-m", "nanobanana_pipeline.simulator", *self._options.as_arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Python looks for the package in the working folder first: a checkout needs no installation.
            cwd=_PACKAGE_ROOT,
            # Ctrl-C in a terminal is for the parent, which may still need the provider to end in good order.
            process_group=0,
        )
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the simulator was started without pipes")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{self.api_key}\n")
            process.stdin.flush()
        watchdog = threading.Timer(_START_TIMEOUT_S, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        if not line:
            self._errors.seek(0)
            reason = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise UserError(f"the simulator did not start: {reason or 'it ended without a word'}")
        ready = json.loads(line)
        self.base_url, self.images_url = ready["base_url"], ready["images_url"]
        ports = [int(url.rpartition(":")[2]) for url in (self.base_url, self.images_url)]
        self._options = replace(self._options, port=ports[0], images_port=ports[1])

    def stop(self) -> None:
        """End it gracefully (SIGTERM); nothing if it has ended already."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._clean_up()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._clean_up()

    def advance(self, seconds: float) -> None:
        """Skip simulated time: what falls due in it happens at once."""
        self._ask("POST", "/simulator/advance", {"seconds": seconds})

    def stats(self) -> dict[str, Any]:
        """The simulator's counts."""
        return self._ask("GET", "/simulator/stats")

    def set_faults(self, rules: Iterable[Mapping[str, Any]]) -> None:
        """Replace the fault script. Raises `UserError` when a rule is wrong."""
        self._ask("POST", "/simulator/faults", {"rules": list(rules)})

    def wait_for(self, event: str, times: int = 1, timeout_s: float = 120.0) -> None:
        """Wait until the book has that many rows of an event. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        while self.stats()["events"].get(event, 0) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the simulator's book has no {times} rows of {event!r} after {timeout_s} s")
            time.sleep(0.01)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 (the address is the simulator's own)
            self.base_url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        # No proxy, whatever the environment says: this is the same machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_START_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise UserError(f"the simulator refused {path}: {error.read().decode(errors='replace')}") from error

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            raise UserError("the simulator is not running: start it first")
        return self._process

    def _clean_up(self) -> None:
        process = self._process
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._errors is not None:
            self._errors.close()
        self._process, self._errors = None, None
