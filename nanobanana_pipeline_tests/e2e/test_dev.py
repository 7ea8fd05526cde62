"""`nanobanana dev`: Dagster's pages and daemon, and nothing of them left behind, however it ends."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from filelock import FileLock

from nanobanana_pipeline.orchestration.instance import prepare_home
from nanobanana_pipeline.orchestration.shard_choice import End
from nanobanana_pipeline.orchestration.shard_facts import end_of
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.e2e.command import ROOT, Place, finish
from nanobanana_pipeline_tests.e2e.conftest import Dev, marked
from nanobanana_pipeline_tests.servers.services import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_terminal_closes_on_a_run_in_progress(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], dev: Dev
) -> None:
    """The run is stopped gracefully, its tables are true, and no process lives on to poll and write in secret."""
    provider = simulator(latency=600.0, sigma=0.0)
    here = Place.with_provider(tmp_path, provider)
    here.catalogue({f"p{i}": f"a drawing of the number {i}" for i in range(8)})
    terminal = dev(here)
    dagster = terminal.dagster
    assert dagster.wait_for_end(dagster.materialize(["prompts", "rejected_prompts"]), 200) == "SUCCESS"
    run_id = dagster.materialize(["images", "results", "attempts"], partition="c-000000")
    provider.wait_for("accepted", 8)
    assert len(terminal.processes) > 4

    assert terminal.close() == 128 + signal.SIGHUP
    assert terminal.processes == []
    with DagsterInstance.from_config(str(here.folder / "home")) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status is DagsterRunStatus.CANCELED
        assert end_of(run) is End.ABANDONED, "its shard would be left alone when Dagster is there again"
    assert here.query("SELECT status, count(*) AS n FROM results GROUP BY 1") == [{"status": "in_flight", "n": 8}]


def test_a_run_in_another_terminal_goes_on(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], dev: Dev
) -> None:
    """They share one Dagster: closing the pages marked its runs as being canceled, and waited for them in vain."""
    provider = simulator(latency=600.0, sigma=0.0)
    here = Place.with_provider(tmp_path, provider)
    here.catalogue({f"p{i}": f"a drawing of the number {i}" for i in range(4)})
    terminal = dev(here)
    home = here.folder / "home"
    run = here.start("run", DAGSTER_HOME=str(home))
    provider.wait_for("accepted", 4)
    assert terminal.press_ctrl_c() == 128 + signal.SIGINT
    with DagsterInstance.from_config(str(home)) as instance:
        (generation,) = instance.get_runs(filters=RunsFilter(job_name="generate_images"))
        assert generation.status is DagsterRunStatus.STARTED
        provider.advance(1200)
        assert finish(run).code == 0
        ended = instance.get_run_by_id(generation.run_id)
        assert ended is not None
        assert ended.status is DagsterRunStatus.SUCCESS


def test_told_to_end_in_the_middle_of_its_start_and_once_more_it_leaves_nothing(tmp_path: Path) -> None:
    """A person changes their mind and is in a hurry; a supervisor sends one signal after the other."""
    mark = f"{tmp_path.name}_in_its_start"
    here = Place(tmp_path, {"NANOBANANA_TEST_MARK": mark, "DAGSTER_HOME": str(tmp_path / "home")})
    here.catalogue({"fox": "a fox"})
    with here.start("dev", "--port", str(free_port())) as process:
        assert process.stderr is not None
        said = iter(process.stderr)
        assert any("starting Dagster" in line for line in said)
        ends = time.monotonic() + 200
        while not any("dagster" in command and "grpc" in command for command in marked(mark)):
            assert time.monotonic() < ends
            time.sleep(0.05)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.3)
        assert process.wait(200) in {128 + signal.SIGTERM, 128 + signal.SIGINT}
        assert "Traceback" not in "".join(said)
    assert marked(mark) == []


def test_two_at_once_on_one_home_are_refused(tmp_path: Path) -> None:
    """Two daemons start each run twice, and Dagster says so in a log alone."""
    home = prepare_home(tmp_path / "home")
    with FileLock(home / ".dev.lock"):
        ended = Place(tmp_path).run("dev", "--port", str(free_port()), DAGSTER_HOME=str(home))
    assert ended.code == 1
    assert str(home) in ended.only_line


def test_two_pipelines_work_side_by_side_and_end_as_a_whole(tmp_path: Path, dev: Dev) -> None:
    """As the example has them, with no key: two catalogues, two folders, one Dagster; it ends with its simulator."""
    here = Place(tmp_path, {"NANOBANANA_AUTUMN_CATALOGUE": "data/autumn"})
    here.catalogue({"fox": "a fox"})
    here.catalogue({"leaf": "a leaf"}, "leaves")
    (tmp_path / "data" / "autumn").mkdir()
    (tmp_path / "data" / "catalogue" / "leaves.parquet").rename(tmp_path / "data" / "autumn" / "c.parquet")
    terminal = dev(here, "--workspace", str(ROOT / "deploy" / "two_pipelines" / "workspace.yaml"))
    dagster = terminal.dagster
    for location, prefix in (("nanobanana_pipeline", ""), ("autumn", "autumn/")):
        run = dagster.materialize([f"{prefix}prompts", f"{prefix}rejected_prompts"], location=location)
        assert dagster.wait_for_end(run, 200) == "SUCCESS"
    runs = [
        dagster.materialize(
            [f"{prefix}{name}" for name in ("images", "results", "attempts")], location=location, partition="c-000000"
        )
        for location, prefix in (("nanobanana_pipeline", ""), ("autumn", "autumn/"))
    ]
    assert [dagster.wait_for_end(run, 200) for run in runs] == ["SUCCESS", "SUCCESS"]
    assert here.query("SELECT prompt FROM results") == [{"prompt": "a fox"}]
    here.environment["NANOBANANA_PIPELINE"] = "autumn"
    assert here.query("SELECT prompt FROM results") == [{"prompt": "a leaf"}]
    assert any("nanobanana_pipeline.simulator" in command for command in terminal.processes)
    terminal.dagster._process.terminate()
    assert terminal.wait() == 128 + signal.SIGTERM
    assert terminal.processes == []


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """The commonest trouble: it is open in another terminal already."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = Place(tmp_path).run("dev", "--port", str(taken.getsockname()[1]))
    assert ended.code == 1
    assert "--port" in ended.only_line
