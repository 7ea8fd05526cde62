"""`nanobanana dev`: Dagster's pages and daemon, and nothing of them left behind, however it ends."""

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus

from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.e2e.command import Place, finish
from nanobanana_pipeline_tests.e2e.dagster_dev import DagsterDev

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]


def processes_with(mark: str) -> list[str]:
    """The command lines of the living processes whose environment has this in it."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_text(errors="replace"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def dev() -> Iterator[Callable[[Place], tuple[DagsterDev, subprocess.Popen[str], str]]]:
    """`dev(place)`: the command once its pages are there, what speaks to them, and a mark that its processes bear."""
    with ExitStack() as started:

        def start(here: Place) -> tuple[DagsterDev, subprocess.Popen[str], str]:
            dagster = DagsterDev(here.folder / "home", {})
            mark = f"{here.folder.name}_{dagster._port}"
            environment = {"DAGSTER_HOME": str(dagster._home), "NANOBANANA_TEST_MARK": mark}
            process = started.enter_context(here.start("dev", "--port", str(dagster._port), **environment))
            started.callback(process.kill)
            dagster._process, dagster._log = process, here.folder / "nothing"  # pyright: ignore[reportAttributeAccessIssue]
            dagster._log.touch()
            dagster.wait_for("its pages", dagster.loaded, 90)
            return dagster, process, mark

        yield start


Dev = Callable[[Place], tuple[DagsterDev, "subprocess.Popen[str]", str]]


def test_the_terminal_closes_on_a_run_in_progress(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], dev: Dev
) -> None:
    """The run is stopped gracefully, its tables are true, and no process lives on to poll and write in secret."""
    provider = simulator(latency=60.0, sigma=0.0)
    here = Place.with_provider(tmp_path, provider)
    here.catalogue({f"p{i}": f"a drawing of the number {i}" for i in range(8)})
    dagster, process, mark = dev(here)
    assert dagster.wait_for_end(dagster.materialize(["prompts", "rejected_prompts"]), 60) == "SUCCESS"
    run_id = dagster.materialize(["images", "results", "attempts"], partition="c-000000")
    provider.wait_for("accepted", 8, timeout_s=60)
    assert len(processes_with(mark)) > 4

    ended = finish(process, number=signal.SIGHUP)
    assert ended.code == 128 + signal.SIGHUP
    assert dagster.url in ended.err
    assert processes_with(mark) == []
    with DagsterInstance.from_config(str(here.folder / "home")) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status is DagsterRunStatus.CANCELED
    assert here.query("SELECT status, count(*) AS n FROM results GROUP BY 1") == [{"status": "in_flight", "n": 8}]


def test_it_ends_as_a_whole_without_a_key(tmp_path: Path, dev: Dev) -> None:
    """With no key it starts a simulator of its own, which must go with it."""
    _, process, mark = dev(Place(tmp_path))
    assert any("nanobanana_pipeline.simulator" in command for command in processes_with(mark))
    ended = finish(process, number=signal.SIGTERM)
    assert ended.code == 128 + signal.SIGTERM
    assert processes_with(mark) == []


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """The commonest trouble: it is open in another terminal already."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = Place(tmp_path).run("dev", "--port", str(taken.getsockname()[1]))
    assert ended.code == 1
    assert "--port" in ended.only_line
