"""`nanobanana dev` as a person has it: in a terminal, with whatever it starts found again afterwards."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from nanobanana_pipeline.orchestration.instance import prepare_home
from nanobanana_pipeline_tests.e2e.command import Place
from nanobanana_pipeline_tests.e2e.dagster_dev import DagsterDev

CTRL_C = b"\x03"
_END_LIMIT_S = 200


@dataclass(slots=True)
class Terminal:
    """A terminal's window with `nanobanana dev` in it, once Dagster's pages are there."""

    dagster: DagsterDev
    window: int
    mark: str

    @property
    def processes(self) -> list[str]:
        """The command lines of all living processes that came of it."""
        return marked(self.mark)

    def press_ctrl_c(self) -> int:
        """What it ends with."""
        os.write(self.window, CTRL_C)
        return self.wait()

    def close(self) -> int:
        """Close the window; what it ends with."""
        os.close(self.window)
        self.window = -1
        return self.wait()

    def wait(self) -> int:
        """What it ends with by itself, or by a signal."""
        return self.dagster._process.wait(_END_LIMIT_S)


def marked(mark: str) -> list[str]:
    """The command lines of all living processes that have `mark` in their environment."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_text(errors="replace"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


class Dev(Protocol):
    """Starts the command for a place, with further options."""

    def __call__(self, here: Place, /, *options: str) -> Terminal:
        """Returns once all code locations are loaded."""
        ...


@pytest.fixture
def dev() -> Iterator[Dev]:
    """`dev(place)`: the command in a terminal of its own."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("looks for processes in /proc")
    with ExitStack() as started:

        def start(here: Place, /, *options: str) -> Terminal:
            dagster = DagsterDev(here.folder / "home", {})
            mark = f"{here.folder.name}_{dagster._port}"
            environment = {"DAGSTER_HOME": str(dagster._home), "NANOBANANA_TEST_MARK": mark}
            process, window = here.start_on_a_terminal("dev", "--port", str(dagster._port), *options, **environment)
            terminal = Terminal(dagster, window, mark)
            started.callback(lambda: terminal.window < 0 or os.close(terminal.window))
            started.callback(process.kill)
            # Asked first, or all that it has started would outlive a test that fails.
            started.callback(lambda: process.poll() is not None or (process.terminate(), process.wait(_END_LIMIT_S)))
            dagster._process, dagster._log = process, here.folder / "nothing"
            dagster._log.touch()
            dagster.wait_for("its pages", dagster.loaded, 240)
            return terminal

        yield start


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared DAGSTER_HOME, to be copied."""
    return prepare_home(tmp_path_factory.mktemp("home") / "prepared")
