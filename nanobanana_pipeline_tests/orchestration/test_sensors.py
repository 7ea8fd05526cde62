"""Sensors and schedules on a real instance: what they start, when they hold back, and what they say then."""

import os
import time
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.jobs import refresh_config
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.orchestration.run_tags import Ended
from nanobanana_pipeline.orchestration.sensors import CatalogueCursor, ReportCursor
from nanobanana_pipeline.orchestration.session import Session
from nanobanana_pipeline.orchestration.shard_choice import End
from nanobanana_pipeline.orchestration.shard_facts import end_of
from nanobanana_pipeline.reporting.approval import approve
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline_tests.orchestration.conftest import Orchestra, rows


def tick(name: str, orchestra: Orchestra, cursor: str | None = None) -> dg.SensorResult:
    """What the daemon would be told by the sensor of this name."""
    sensor = build_defs().resolve_sensor_def(name)
    resources = {"nano_banana": NanoBananaResource.from_settings(load_settings())}
    needed = {name: resources[name] for name in sensor.required_resource_keys}
    with dg.build_sensor_context(instance=orchestra.instance, cursor=cursor, resources=needed) as context:
        answer: Any = sensor(context)
    if isinstance(answer, dg.SkipReason):
        return dg.SensorResult(skip_reason=answer)
    assert isinstance(answer, dg.SensorResult)
    return answer


def said(answer: dg.SensorResult) -> str:
    """Why nothing was started."""
    reason = answer.skip_reason
    assert not answer.run_requests
    assert reason is not None
    return str(reason.skip_message)


def shards(answer: dg.SensorResult) -> list[str | None]:
    """What was started."""
    return [request.partition_key for request in answer.run_requests or ()]


# --- catalogue_sensor
# --------------------------------------------------------------------------------------------------


def test_a_file_that_is_being_copied_is_left_until_it_comes_to_rest() -> None:
    """Half a Parquet file would be one rejected row, and the catalogue's items would wait for the next change."""
    cursor, started = CatalogueCursor().look("half", 0)
    assert not started
    cursor, started = cursor.look("whole", 15)
    assert not started
    cursor, started = cursor.look("whole", 30)
    assert started
    cursor, started = cursor.look("whole", 45)
    assert not started


def test_where_a_file_comes_every_few_seconds_the_others_are_read_all_the_same() -> None:
    """A feed that never rests would keep all that came before it waiting until the evening."""
    cursor, starts = CatalogueCursor(), list[int]()
    for now in range(1000, 1600, 15):
        cursor, started = cursor.look(f"with the file of {now}", now)
        starts += [now] * started
    assert starts == [1120, 1255, 1390, 1525]


def test_a_half_written_file_is_left_until_it_is_whole_however_long_its_writer_rests(orchestra: Orchestra) -> None:
    """A writer that waits for its rows leaves half a file at rest; the other catalogues need not wait with it."""

    def settle(cursor: str | None) -> tuple[list[Any], str | None]:
        configs: list[Any] = []
        for _ in range(3):
            answer = tick("catalogue_sensor", orchestra, cursor)
            cursor = answer.cursor or cursor
            configs += [request.run_config for request in answer.run_requests or ()]
        return configs, cursor

    whole = orchestra.pipeline.write(rows(2), "slow").read_bytes()
    slow = orchestra.pipeline.folder / "catalogue" / "slow.parquet"
    slow.write_bytes(whole[: len(whole) // 2])
    for number in range(300):
        (slow.parent / f"other-{number:03d}.parquet").write_bytes(whole)
    configs, cursor = settle(None)
    assert configs == [refresh_config([f"other-{number:03d}" for number in range(300)])]
    slow.write_bytes(whole[:-5])
    configs, cursor = settle(cursor)
    assert configs == []
    assert said(tick("catalogue_sensor", orchestra, cursor)) == "read when they are whole: slow"
    slow.write_bytes(whole)
    configs, cursor = settle(cursor)
    assert configs == [refresh_config()]
    assert settle(cursor)[0] == []


def test_a_file_that_was_left_torn_is_told_in_the_end(orchestra: Orchestra) -> None:
    """Its writer has died: waiting for ever would keep it from the rejected rows, where a person looks."""
    torn = orchestra.pipeline.write(rows(1))
    torn.write_bytes(torn.read_bytes()[:-5])
    cursor = tick("catalogue_sensor", orchestra).cursor
    assert said(tick("catalogue_sensor", orchestra, cursor))
    an_hour_ago = time.time() - 3600
    os.utime(torn, (an_hour_ago, an_hour_ago))
    cursor = tick("catalogue_sensor", orchestra, cursor).cursor
    assert len(tick("catalogue_sensor", orchestra, cursor).run_requests or ()) == 1


def test_a_file_put_back_as_it_was_is_a_change_too() -> None:
    """The ledger has entered what was there in between."""
    cursor = CatalogueCursor("b", "b")
    cursor, _ = cursor.look("a", 0)
    cursor, started = cursor.look("a", 15)
    assert started


def test_new_changed_and_removed_files_start_one_refresh_each(orchestra: Orchestra) -> None:
    """Nobody should have to click after dropping a file in."""

    def settle(cursor: str | None) -> tuple[int, str | None]:
        count = 0
        for _ in range(3):
            answer = tick("catalogue_sensor", orchestra, cursor)
            cursor = answer.cursor or cursor
            count += len(answer.run_requests or ())
        return count, cursor

    path = orchestra.pipeline.write(rows(1))
    count, cursor = settle(None)
    assert count == 1
    count, cursor = settle(cursor)
    assert count == 0
    orchestra.pipeline.write(rows(2))
    count, cursor = settle(cursor)
    assert count == 1
    path.unlink()
    count, cursor = settle(cursor)
    assert count == 1


@pytest.mark.parametrize("end", ["report_run_failed", "report_run_canceled"])
def test_a_reading_that_did_not_come_to_its_end_is_started_again(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Ctrl-C in `nanobanana dev` just after a file was dropped in: it was never read, until someone touched it."""
    orchestra.pipeline.write(rows(1))
    cursor = tick("catalogue_sensor", orchestra).cursor
    (request,) = tick("catalogue_sensor", orchestra, cursor).run_requests or []
    cursor = tick("catalogue_sensor", orchestra, cursor).cursor
    run = add_run(orchestra, "refresh_catalogue", request)
    assert said(tick("catalogue_sensor", orchestra, cursor)) == "nothing has changed in any of 1"
    getattr(orchestra.instance, end)(run)
    assert "once more in" in said(tick("catalogue_sensor", orchestra, cursor))
    monkeypatch.setattr("nanobanana_pipeline.orchestration.sensors._REPEAT_S", 0.0)
    answer = tick("catalogue_sensor", orchestra, cursor)
    assert [again.run_config for again in answer.run_requests or ()] == [refresh_config()]
    orchestra.tags = dict(request.tags)
    orchestra.refresh()
    assert said(tick("catalogue_sensor", orchestra, answer.cursor)) == "nothing has changed in any of 1"


def add_run(orchestra: Orchestra, job: str, request: dg.RunRequest) -> dg.DagsterRun:
    """The run that the daemon makes of a sensor's request, at work."""
    status = dg.DagsterRunStatus.STARTED
    return orchestra.instance.add_run(dg.DagsterRun(job, tags=dict(request.tags), status=status))


def test_a_missing_folder_is_said_and_not_a_failed_tick(orchestra: Orchestra) -> None:
    """A sensor that fails every fifteen seconds fills a page with red for what one line says."""
    assert "NANOBANANA_CATALOGUE" in said(tick("catalogue_sensor", orchestra))


# --- generation_sensor
# -------------------------------------------------------------------------------------------------


def test_shards_with_work_left_are_started_and_finished_ones_are_not(orchestra: Orchestra) -> None:
    """The whole point of it; and its partitions need not be there yet, as after `nanobanana run` elsewhere."""
    orchestra.pipeline.write(rows(1))
    orchestra.refresh()
    orchestra.pipeline.write([{"prompt": "an owl", "resolution": "0.5K"}], "other")
    orchestra.pipeline.refresh()
    answer = tick("generation_sensor", orchestra)
    assert shards(answer) == ["cat-000000", "other-000000"]
    assert [list(request.partition_keys) for request in answer.dynamic_partitions_requests or ()] == [["other-000000"]]
    orchestra.refresh()
    orchestra.generate("cat-000000")
    assert shards(tick("generation_sensor", orchestra)) == ["other-000000"]
    orchestra.generate("other-000000")
    assert said(tick("generation_sensor", orchestra)) == "no shard has work left"


def test_a_costly_plan_waits_for_a_person(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody there to ask, what an unattended pipeline may cost is decided beforehand."""
    monkeypatch.setenv("NANOBANANA_APPROVE_ABOVE_USD", "0.1")
    orchestra.pipeline.write(rows(5))
    orchestra.refresh()

    asked = said(tick("generation_sensor", orchestra))

    assert "a person has to approve" in asked
    assert not orchestra.generate().success
    assert orchestra.pipeline.accepted() == []
    with orchestra.pipeline.open() as workspace:
        plan = approve(workspace, asked.partition("nanobanana approve ")[2].rstrip("`")).hash
    assert shards(tick("generation_sensor", orchestra)) == ["cat-000000"]
    assert orchestra.generate().success
    assert {row["plan_hash"] for row in orchestra.pipeline.table("attempts")} == {plan}


def test_a_cap_of_its_own_is_a_person_s_word(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes a sum into the launchpad has thought about it."""
    monkeypatch.setenv("NANOBANANA_APPROVE_ABOVE_USD", "0.1")
    orchestra.pipeline.write(rows(5))
    orchestra.refresh()
    assert orchestra.generate(max_cost_usd=2).success
    assert len(orchestra.pipeline.accepted()) == 5


def test_a_queued_run_is_not_started_again(orchestra: Orchestra) -> None:
    """Ticks come every thirty seconds, and a queue may be hours long."""
    orchestra.pipeline.write(rows(1))
    orchestra.refresh()
    job = build_defs().resolve_job_def("generate_images")
    orchestra.instance.create_run_for_job(job, tags={**job.run_tags, "dagster/partition": "cat-000000"})
    assert said(tick("generation_sensor", orchestra)) == "1: a run is under way"


def test_a_killed_run_is_resumed_and_one_that_a_person_stopped_is_not(orchestra: Orchestra) -> None:
    """Both leave items in flight; only one of them was meant."""
    orchestra.pipeline.write(rows(2))
    orchestra.refresh()
    orchestra.pipeline.simulator.set_faults([{"fault": "slow_task", "seconds": 300}])
    session = Session()

    def stop_when_in_flight(_shard: str, tally: Tally) -> None:
        if tally.submitted:
            session.stop.throw()

    session.on_progress = stop_when_in_flight
    orchestra.session = session
    run_id = orchestra.generate().run_id
    assert shards(tick("generation_sensor", orchestra)) == ["cat-000000"]
    orchestra.instance.add_run_tags(run_id, Ended.BY_A_PERSON.of(run_id))
    assert "a person stopped it" in said(tick("generation_sensor", orchestra))
    orchestra.pipeline.write(rows(3))
    orchestra.refresh()
    assert shards(tick("generation_sensor", orchestra)) == ["cat-000000"]


def test_a_wrong_key_is_tried_ever_more_rarely(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand shards must not make ten thousand failed runs of one mistake."""
    for name in ("a", "b"):
        orchestra.pipeline.write([{"prompt": f"a fox of {name}", "resolution": "0.5K"}], name)
    orchestra.refresh()
    monkeypatch.setenv("NANOBANANA_API_KEY", "wrong-key")
    orchestra.generate("a-000000")
    assert "failed for you to mend" in said(tick("generation_sensor", orchestra))


def test_without_room_under_the_cap_nothing_is_started(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run would only find out again that there is none."""
    orchestra.pipeline.write(rows(1))
    orchestra.refresh()
    monkeypatch.setenv("NANOBANANA_BUDGET_USD", "0.01")
    assert said(tick("generation_sensor", orchestra)) == "1: the cap has no room"


def test_an_unusable_ledger_is_said(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sensor is the first to meet it at night."""
    monkeypatch.setenv("NANOBANANA_LEDGER_URL", "mysql://nowhere")
    assert "NANOBANANA_LEDGER_URL" in said(tick("generation_sensor", orchestra))


@pytest.mark.parametrize(
    ("status", "noted", "end"),
    [
        (dg.DagsterRunStatus.SUCCESS, None, End.SUCCEEDED),
        (dg.DagsterRunStatus.FAILURE, None, End.ABANDONED),
        (dg.DagsterRunStatus.FAILURE, Ended.BY_AN_ERROR, End.BROKEN),
        (dg.DagsterRunStatus.FAILURE, Ended.FOR_AN_APPROVAL, End.UNAPPROVED),
        (dg.DagsterRunStatus.CANCELED, None, End.STOPPED),
        (dg.DagsterRunStatus.CANCELED, Ended.BY_A_PERSON, End.STOPPED),
        (dg.DagsterRunStatus.CANCELED, Ended.BY_A_SIGNAL, End.ABANDONED),
    ],
)
def test_how_a_run_ended_is_read_from_what_it_left(status: dg.DagsterRunStatus, noted: Ended | None, end: End) -> None:
    """A run that was killed could leave no note: that is how it is told."""
    run = dg.DagsterRun("generate_images", status=status)
    assert end_of(run.with_tags(noted.of(run.run_id) if noted else {})) is end


@pytest.mark.parametrize("noted", Ended)
def test_a_re_execution_that_is_killed_at_its_very_start_did_not_end_as_its_parent(noted: Ended) -> None:
    """It bears its parent's tags before it is at work: read as its own, the sensor would leave its shard alone."""
    parent = dg.DagsterRun("generate_images")
    tags = noted.of(parent.run_id)
    assert end_of(dg.DagsterRun("generate_images", status=dg.DagsterRunStatus.FAILURE, tags=tags)) is End.ABANDONED


# --- report_sensor
# -----------------------------------------------------------------------------------------------------


def test_reports_come_at_once_when_all_is_quiet_and_now_and_then_while_it_is_not() -> None:
    """A hundred shards that end in a minute are one report, and a run of a day has reports all the time."""
    cursor = ReportCursor(reported_until=100.0, started_at=100.0)
    assert not cursor.due(None, generating=False, now=200.0)
    assert not cursor.due(100.0, generating=False, now=200.0)
    assert cursor.due(150.0, generating=False, now=200.0)
    assert not cursor.due(150.0, generating=True, now=200.0)
    assert cursor.due(150.0, generating=True, now=401.0)


def test_a_report_follows_generation_once(orchestra: Orchestra) -> None:
    """However the shard was started: by click, sensor or command."""
    orchestra.pipeline.write(rows(1))
    orchestra.refresh()
    assert said(tick("report_sensor", orchestra)) == "nothing was generated since the last report"
    orchestra.generate()
    answer = tick("report_sensor", orchestra)
    assert len(answer.run_requests or ()) == 1
    assert said(tick("report_sensor", orchestra, answer.cursor)) == "nothing was generated since the last report"


def test_a_report_that_did_not_come_to_its_end_is_made_again(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the pages show what was before, until something more is generated."""
    orchestra.pipeline.write(rows(1))
    orchestra.refresh()
    orchestra.generate()
    answer = tick("report_sensor", orchestra)
    (request,) = answer.run_requests or []
    run = add_run(orchestra, "report_costs", request)
    assert said(tick("report_sensor", orchestra, answer.cursor))
    orchestra.instance.report_run_failed(run)
    assert said(tick("report_sensor", orchestra, answer.cursor))
    monkeypatch.setattr("nanobanana_pipeline.orchestration.sensors._REPEAT_S", 0.0)
    assert len(tick("report_sensor", orchestra, answer.cursor).run_requests or ()) == 1


# --- nightly_generation
# ------------------------------------------------------------------------------------------------


def test_the_night_starts_what_is_left(orchestra: Orchestra) -> None:
    """With a new day's budget, deferred items have their turn."""
    orchestra.pipeline.write(rows(2))
    orchestra.pipeline.write([{"prompt": "an owl", "resolution": "0.5K"}], "other")
    orchestra.pipeline.refresh()
    resources = {"nano_banana": NanoBananaResource.from_settings(load_settings())}
    repository = build_defs().get_repository_def()
    with dg.build_schedule_context(
        instance=orchestra.instance,
        scheduled_execution_time=datetime.now(UTC),
        resources=resources,
        repository_def=repository,
    ) as context:
        # As the daemon does it: what several runs in one tick need is checked here, and not when it is called.
        requests = repository.get_schedule_def("nightly_generation").evaluate_tick(context).run_requests or []
    assert [request.partition_key for request in requests] == ["cat-000000", "other-000000"]
    assert orchestra.instance.get_dynamic_partitions("shards") == ["cat-000000", "other-000000"]
