"""Dagster's event log kept open for a command: the same as Dagster's own to all who read it, then and later."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage

from nanobanana_pipeline.orchestration.event_log import kept_open
from nanobanana_pipeline.orchestration.instance import prepare_home


@dg.asset
def picture(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    """An asset with something in its log."""
    context.log.info("a line")
    return dg.MaterializeResult(metadata={"items": 3})


@dg.job
def nothing() -> None:
    """A job of no steps."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DAGSTER_HOME as we make it."""
    return prepare_home(tmp_path)


def materialise(instance: dg.DagsterInstance) -> str:
    """A run of `picture`; its id."""
    return dg.materialize([picture], instance=instance).run_id


def test_what_is_written_is_what_dagster_writes(home: Path) -> None:
    """Beside it, and when it is closed again, another process finds the same events as in a log that was never kept."""
    with dg.DagsterInstance.from_config(str(home)) as instance, dg.DagsterInstance.from_config(str(home)) as beside:
        plain = materialise(instance)
        with kept_open(instance.event_log_storage):
            kept = [materialise(instance) for _ in range(3)]
            seen = [[record.dagster_event_type for record in beside.all_logs(run)] for run in kept]
        again = materialise(instance)

        expected = [record.dagster_event_type for record in beside.all_logs(plain)]
        assert seen == [expected] * 3
        assert [[r.dagster_event_type for r in beside.all_logs(run)] for run in [*kept, again]] == [expected] * 4
        assert len(beside.fetch_materializations(picture.key, limit=10).records) == 5


def test_more_runs_than_stay_open_lose_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was closed to make room is opened again when its run says more."""
    monkeypatch.setattr("nanobanana_pipeline.orchestration.event_log._OPEN", 2)
    with dg.DagsterInstance.from_config(str(home)) as instance, kept_open(instance.event_log_storage):
        runs = [instance.create_run_for_job(nothing) for _ in range(4)]
        for line in ("first", "second"):
            for run in runs:
                instance.report_engine_event(line, run)

        said = [[record.message for record in instance.all_logs(run.run_id)] for run in runs]
    assert [[line for line in lines if line in {"first", "second"}] for lines in said] == [["first", "second"]] * 4


def test_another_storage_is_left_alone() -> None:
    """A log in PostgreSQL, or in memory, keeps its connections itself."""
    with dg.DagsterInstance.ephemeral() as instance:
        storage = instance.event_log_storage
        with kept_open(storage):
            assert type(storage) is not SqliteEventLogStorage
            assert "_connect" not in vars(storage)
