"""Where lives begin that are to be killed: a process with all imports done, which forks each of them.

A start of Python and its imports takes two seconds of CPU, a life often less: a thousand kills would mostly strike
imports. Each life has a session, and so a process group, of its own.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from nanobanana_pipeline_tests.chaos.phases import REPAIR, Board, announce

Through = Literal["engine", "dagster"]
Task = Literal["run", "repair"]
"""What a life does: work everything off, or the command that mends what others left."""

BORN: Final = "born"
ENDED: Final = "ended"
_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_BIRTH_TIMEOUT_S: Final = 600.0


class Nursery:
    """A process that forks lives, one at a time. Close it when done."""

    def __init__(self, through: Through, environment: Mapping[str, str], board: Path, errors: Path) -> None:
        with errors.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, through, str(board)],
                cwd=_REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def bear(self, task: Task) -> "Life":
        """Begin a life."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{task}\n")
        self._process.stdin.flush()
        word, pid = self._lines.get(timeout=_BIRTH_TIMEOUT_S).split()
        assert word == BORN
        return Life(int(pid), self._lines)

    def close(self) -> None:
        """End it; no life is left by now."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):  # closed under it
            for line in self._process.stdout:
                if line.startswith((BORN, ENDED)):
                    self._lines.put(line.strip())


class Life:
    """One process between its birth and its kill."""

    def __init__(self, pid: int, lines: "queue.Queue[str]") -> None:
        self.pid = pid
        self.code: int | None = None
        """What it ended with; None while it lives, negative when a signal ended it."""
        self._lines = lines

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.code is not None

    def wait(self, timeout_s: float) -> None:
        """Wait for its end or the timeout."""
        if not self.ended:
            with suppress(queue.Empty):
                word, code = self._lines.get(timeout=timeout_s).split()
                assert word == ENDED
                self.code = int(code)

    def kill(self) -> None:
        """SIGKILL its whole process group, and see it dead."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            while not self.ended:
                self.wait(_BIRTH_TIMEOUT_S)


def _say(words: str) -> None:
    # One write: lines of the nursery and of its lives share the pipe.
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _main(through: Through, board: Board) -> None:
    announce(board)
    from nanobanana_pipeline.cli import main as command  # noqa: PLC0415 - only now: it imports what is announced
    from nanobanana_pipeline.definitions import build_defs  # noqa: PLC0415
    from nanobanana_pipeline_tests.chaos.worker import PATIENCE, TIMEOUTS, work_off  # noqa: PLC0415

    build_defs()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _say(f"{BORN} {os.getpid()}")
            code = 70
            try:
                if line.strip() == "repair":
                    with board.during(REPAIR):
                        code = command(["repair"])
                elif through == "dagster":
                    code = command(["run", "--json"])
                else:
                    work_off("chaos-run", PATIENCE, TIMEOUTS)
                    code = 0
            except BaseException as error:  # noqa: BLE001 - a life that ends so is no nursery
                sys.stderr.write(f"a life ended by {error!r}\n")
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        _say(f"{ENDED} {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    _main("dagster" if sys.argv[1] == "dagster" else "engine", Board(Path(sys.argv[2])))
