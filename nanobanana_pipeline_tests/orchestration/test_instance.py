"""Dagster's home and what killed runs leave in it, with real processes."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from sqlalchemy import make_url

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration.instance import end_dead_runs, free_dead_slots, prepare_home, sign_run
from nanobanana_pipeline.orchestration.partitions import add_shards
from nanobanana_pipeline.orchestration.run_tags import ENDED_TAG, Ended

POOL = "nanobanana_api"

PREPARE = """
import sys
from dagster import DagsterInstance
from nanobanana_pipeline.orchestration.instance import prepare_home

print("ready", flush=True)
sys.stdin.readline()
with DagsterInstance.from_config(str(prepare_home(sys.argv[1]))) as instance:
    assert instance.get_runs() == []
"""

# A run that says when it works, and then works until it is killed; or one that has nothing to do.
RUN = """
import signal
import sys
from dagster import DagsterInstance, Definitions, asset, define_asset_job
from nanobanana_pipeline.orchestration.instance import sign_run

@asset(pool="nanobanana_api")
def images(context):
    if "unsigned" not in sys.argv:
        sign_run(context.instance, context.run)
    print(context.run_id, flush=True)
    if "endless" in sys.argv:
        signal.pause()

job = Definitions(assets=[images], jobs=[define_asset_job("generate")]).resolve_job_def("generate")
with DagsterInstance.from_config(sys.argv[1]) as instance:
    job.execute_in_process(instance=instance)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A prepared home whose one pool has one slot, counted by operations: there a killed run's slot stays taken."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1, granularity: op}}\n"
    )
    return prepare_home(home)


@contextmanager
def python(program: str, *arguments: str | Path) -> Generator[subprocess.Popen[str]]:
    """A Python process that ends with the test."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        try:
            yield it
        finally:
            it.kill()


def kill_a_run(home: Path, *how: str) -> str:
    """Start an endless run, kill it with SIGKILL once it works, and return its id."""
    with python(RUN, home, "endless", *how) as run:
        assert run.stdout is not None
        run_id = run.stdout.readline().strip()
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert run_id
    return run_id


def taken_slots(instance: DagsterInstance) -> list[str]:
    """The runs that hold the pool's slots."""
    return [slot.run_id for slot in instance.event_log_storage.get_concurrency_info(POOL).claimed_slots]


def test_four_processes_can_start_at_once_on_an_empty_home(tmp_path: Path) -> None:
    """Without the lock Dagster can break its own databases here for good, and the user's first minute with them."""
    home = tmp_path / "not" / "yet" / "there"
    with ExitStack() as running:
        starters = [running.enter_context(python(PREPARE, home)) for _ in range(4)]
        for process in starters:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in starters:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate()[1] for process in starters]
    assert [process.returncode for process in starters] == [0, 0, 0, 0], errors
    for database in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        with closing(sqlite3.connect(home / database)) as connection:
            assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_what_is_written_is_what_dagster_reads(tmp_path: Path) -> None:
    """Dagster ignores no misspelt setting, but reads some only from one of several places: so ask Dagster."""
    with DagsterInstance.from_config(str(prepare_home(tmp_path / "home"))) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_cancel_timeout_seconds == 300
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.default_pool_limit == 4
        assert concurrency.run_queue_config is not None
        assert concurrency.run_queue_config.max_concurrent_runs == 8
        assert concurrency.run_queue_config.max_user_code_failure_retries == 3


def test_a_home_with_its_own_configuration_keeps_it(home: Path) -> None:
    """The configuration is the user's; a start must never undo what they set."""
    assert "default_limit: 1" in (home / "dagster.yaml").read_text()


def test_a_preparation_that_was_cut_short_is_made_good(tmp_path: Path) -> None:
    """A power cut while the databases were made must not leave half a home that every later start trips over."""
    torn = tmp_path / ".preparing-torn" / "history"
    torn.mkdir(parents=True)
    (torn / "runs.db").write_bytes(b"SQLite format 3\0torn")
    with DagsterInstance.from_config(str(prepare_home(tmp_path))) as instance:
        assert instance.get_runs() == []
    assert not torn.exists()


@pytest.mark.parametrize(
    ("yaml", "said"),
    [("concurrency: {pools: {granularity: shard}}", "granularity"), ("storage: [", "dagster.yaml")],
)
def test_a_wrong_configuration_is_one_line_to_the_user(tmp_path: Path, yaml: str, said: str) -> None:
    """It is their file: they need to hear which one, and what is wrong with it, and see no traceback."""
    (tmp_path / "dagster.yaml").write_text(yaml)
    with pytest.raises(UserError, match=said):
        prepare_home(tmp_path)


def test_a_home_that_can_not_be_made_is_one_line_to_the_user(tmp_path: Path) -> None:
    """A mistyped DAGSTER_HOME must say so."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"choose a local folder"):
        prepare_home(tmp_path / "file" / "home")


@pytest.mark.timeout(180)
def test_a_killed_run_gives_its_slot_back(home: Path) -> None:
    """Otherwise one kill -9 would stop all generation until a person found the page where slots are freed."""
    killed = kill_a_run(home)
    with DagsterInstance.from_config(str(home)) as instance:
        assert taken_slots(instance) == [killed]
        assert free_dead_slots(instance) == [killed]
        assert taken_slots(instance) == []
        run = instance.get_run_by_id(killed)
        assert run is not None
        assert run.status is DagsterRunStatus.FAILURE
        assert free_dead_slots(instance) == []
    with python(RUN, home) as next_run:
        _, errors = next_run.communicate()
    assert next_run.returncode == 0, errors


def test_the_slot_of_a_run_that_is_over_is_freed_whoever_ended_it(home: Path) -> None:
    """Dagster's code server marks a killed run as failed, and leaves its slot taken."""
    killed = kill_a_run(home, "unsigned")
    with DagsterInstance.from_config(str(home)) as instance:
        assert free_dead_slots(instance) == []
        run = instance.get_run_by_id(killed)
        assert run is not None
        instance.report_run_failed(run)
        assert free_dead_slots(instance) == [killed]
        assert taken_slots(instance) == []


def test_a_run_that_was_being_canceled_ends_as_canceled(home: Path) -> None:
    """A person who stopped a run and then lost the machine must not read that it failed."""
    killed = kill_a_run(home)
    with DagsterInstance.from_config(str(home)) as instance:
        run = instance.get_run_by_id(killed)
        assert run is not None
        instance.report_run_canceling(run)
        assert end_dead_runs(instance) == [killed]
        ended = instance.get_run_by_id(killed)
        assert ended is not None
        assert ended.status is DagsterRunStatus.CANCELED


def test_a_re_execution_of_a_killed_run_is_not_taken_for_dead(home: Path) -> None:
    """It takes the killed one's tags over, and with them the signature of a process that is gone."""
    killed = kill_a_run(home)
    with DagsterInstance.from_config(str(home)) as instance:
        parent = instance.get_run_by_id(killed)
        assert parent is not None
        assert end_dead_runs(instance) == [killed]
        tags = {**parent.tags, **Ended.BY_A_PERSON.of(killed)}
        again = instance.add_run(DagsterRun("generate", tags=tags, status=DagsterRunStatus.STARTING))
        assert end_dead_runs(instance) == []
        sign_run(instance, again)
        signed = instance.get_run_by_id(again.run_id)
        assert signed is not None
        assert not signed.tags[ENDED_TAG]
        assert end_dead_runs(instance) == []


def test_a_run_that_ends_well_while_it_is_looked_at_stays_a_success(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every few seconds some sensor looks, and between two of its questions the run succeeds and its process ends."""
    killed = kill_a_run(home)
    with DagsterInstance.from_config(str(home)) as instance:
        look_up = instance.get_runs

        def looked_up_too_early(*args: Any, **kwargs: Any) -> list[DagsterRun]:
            found = list(look_up(*args, **kwargs))
            for run in found:
                if not instance.get_run_by_id(run.run_id).is_finished:  # pyright: ignore[reportOptionalMemberAccess]
                    report_success(instance, run)
            return found

        monkeypatch.setattr(instance, "get_runs", looked_up_too_early)
        assert end_dead_runs(instance) == []
        run = instance.get_run_by_id(killed)
        assert run is not None
        assert run.status is DagsterRunStatus.SUCCESS


def report_success(instance: DagsterInstance, run: DagsterRun) -> None:
    """What a run's process says last."""
    event = DagsterEvent(DagsterEventType.PIPELINE_SUCCESS.value, run.job_name)
    instance.report_dagster_event(event, run.run_id)


def test_two_that_make_the_same_partitions_at_once_both_go_on(tmp_path: Path) -> None:
    """The catalogue's sensor and a person's click read a new file at the same time: one of the runs failed."""
    home = str(prepare_home(tmp_path / "home"))
    with DagsterInstance.from_config(home) as one, DagsterInstance.from_config(home) as other:
        for number in range(10):
            at_once = threading.Barrier(2)
            shards = [f"cat{number}-{shard:06d}" for shard in range(50)]

            def add(
                instance: DagsterInstance, at_once: threading.Barrier = at_once, shards: list[str] = shards
            ) -> list[str]:
                at_once.wait()
                return add_shards(instance, "shards", shards)

            with ThreadPoolExecutor(2) as threads:
                added = [shard for new in threads.map(add, (one, other)) for shard in new]
            assert set(added) == set(shards)
        assert len(one.get_dynamic_partitions("shards")) == 500


def test_a_run_that_lives_keeps_its_slot(home: Path) -> None:
    """Freeing too much would let more runs at the provider than the pool allows."""
    with python(RUN, home, "endless") as run, DagsterInstance.from_config(str(home)) as instance:
        assert run.stdout is not None
        alive = run.stdout.readline().strip()
        assert free_dead_slots(instance) == []
        assert taken_slots(instance) == [alive]


@pytest.mark.postgres
def test_a_storage_with_the_wrong_driver_is_refused(tmp_path: Path, postgres_url: str) -> None:
    """It would work until the first run, and that one and every other would die at its first event."""
    plain = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    (tmp_path / "dagster.yaml").write_text(f"storage: {{postgres: {{postgres_url: '{plain}'}}}}")
    with pytest.raises(UserError, match=r"postgresql\+psycopg2://"):
        prepare_home(tmp_path)
