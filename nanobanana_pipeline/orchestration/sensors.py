"""Sensors: what starts runs by itself. They only look, and keep to few queries; what they decide is in pure functions.

A tick is cut off after 60 seconds. None of these reads a catalogue's rows, asks the provider, or spends anything
itself.
"""

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from typing import Final, Self

import dagster as dg
from dagster import DagsterRunStatus

from nanobanana_pipeline.catalogue.reading import find_catalogues, is_being_written
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration.fingerprint import catalogue_fingerprint
from nanobanana_pipeline.orchestration.instance import end_dead_runs, hand_out_again
from nanobanana_pipeline.orchestration.jobs import Jobs, refresh_config
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.orchestration.run_tags import STARTED_BY_TAG
from nanobanana_pipeline.orchestration.shard_choice import Waiting, brake_s, choose
from nanobanana_pipeline.orchestration.shard_facts import UNFINISHED, gather, latest_runs, past_runs
from nanobanana_pipeline.reporting.alert_sinks import sinks_of
from nanobanana_pipeline.reporting.alerts import tell

CATALOGUE_EVERY_S: Final = 15
GENERATION_EVERY_S: Final = 30
REPORT_EVERY_S: Final = 30
ALERTS_EVERY_S: Final = 60

_LONGEST_UNREST_S: Final = 120.0
_LEAST_ACTIVE: Final = 12
_QUEUED_FOR_EACH: Final = 2
_NAMED: Final = 5

_REPORT_PAUSE_S: Final = 300.0
_NOT_DONE: Final = (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_ENDED: Final = [DagsterRunStatus.SUCCESS, *_NOT_DONE]
_REPEAT_S: Final = 60.0
_LONGEST_REPEAT_S: Final = 3600.0
_REPEATS_COUNTED: Final = 8


def build_sensors(names: Names, jobs: Jobs, every_s: int | None = None) -> tuple[dg.SensorDefinition, ...]:
    """The sensors of one pipeline; `every_s` has them look that often, all alike."""
    return (
        _catalogue_sensor(names, jobs, every_s or CATALOGUE_EVERY_S),
        _generation_sensor(names, jobs, every_s or GENERATION_EVERY_S),
        _report_sensor(names, jobs, every_s or REPORT_EVERY_S),
        _alert_sensor(every_s or ALERTS_EVERY_S),
    )


@dataclass(frozen=True, slots=True)
class CatalogueCursor:
    """The catalogues' fingerprint at the last look, that for which a run was last started, and since when they differ.

    Times in seconds since the epoch; 0 while they don't.
    """

    seen: str = ""
    started: str = ""
    changing_since: float = 0.0

    @classmethod
    def read(cls, text: str | None) -> Self:
        """From the sensor's cursor; anything unreadable is a first look."""
        return cls(**json.loads(text)) if text else cls()

    def look(self, fingerprint: str, now: float) -> tuple[Self, bool]:
        """The next cursor, and whether to start a run.

        A file that is being copied changes from look to look: a change counts only when the next look finds it again.
        Where a file comes every few seconds none ever does, and what has come must not wait for the last.
        """
        if fingerprint == self.started:
            return type(self)(fingerprint, self.started), False
        since = self.changing_since or now
        if fingerprint == self.seen or now - since >= _LONGEST_UNREST_S:
            return type(self)(fingerprint, fingerprint), True
        return type(self)(fingerprint, self.started, since), False


def _catalogue_sensor(names: Names, jobs: Jobs, every_s: int) -> dg.SensorDefinition:
    @dg.sensor(
        job=jobs.refresh_catalogue,
        minimum_interval_seconds=every_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Watches the catalogue folder, and reads the catalogues again when a file is new, changed or "
        "removed and has come to rest; once more, when that failed or was stopped. Free: it makes no images.",
    )
    def catalogue_sensor(
        context: dg.SensorEvaluationContext, nano_banana: NanoBananaResource
    ) -> dg.SensorResult | dg.SkipReason:
        """Start `refresh_catalogue` when the files have changed."""
        try:
            sources = find_catalogues(nano_banana.settings().catalogue)
        except UserError as error:
            return dg.SkipReason(str(error))
        now = time.time()
        being_written = {source.name for source in sources if is_being_written(source, now)}
        cursor = CatalogueCursor.read(context.cursor)
        after, start = cursor.look(catalogue_fingerprint(sources, being_written), now)
        mine = {STARTED_BY_TAG: names.tag("catalogue_sensor")}
        # That a run was started for these files is no proof that it came to its end.
        pause_s = repeated_in_s(context.instance, mine, now) if after.seen == after.started and not start else None
        start = start or pause_s == 0
        whole = [source.name for source in sources if source.name not in being_written]
        requests: list[dg.RunRequest] = []
        if start and (whole or (cursor.started and not being_written)):
            config = refresh_config(whole if being_written else None)
            requests = [dg.RunRequest(run_config=config, tags=mine)]
        reason = None if requests else _why_nothing(after, being_written, len(sources), pause_s)
        return dg.SensorResult(run_requests=requests, skip_reason=reason, cursor=json.dumps(asdict(after)))

    return catalogue_sensor


def repeated_in_s(instance: dg.DagsterInstance, tags: dict[str, str], now: float) -> float | None:
    """In how many seconds the last run with these tags is to be started once more, as it failed or was stopped.

    None when there is no need. Each in a row that did not succeed doubles the pause, up to an hour.
    """
    past = instance.get_run_records(dg.RunsFilter(tags=tags), limit=_REPEATS_COUNTED)
    if not past or not past[0].dagster_run.is_finished:
        return None
    failed = len([*takewhile(lambda record: record.dagster_run.status in _NOT_DONE, past)])
    ended = past[0].end_time or past[0].update_timestamp.timestamp()
    return max(0.0, ended + min(_REPEAT_S * 2 ** (failed - 1), _LONGEST_REPEAT_S) - now) if failed else None


def _why_nothing(after: CatalogueCursor, being_written: Collection[str], catalogues: int, pause_s: float | None) -> str:
    if pause_s:
        return f"the last reading did not come to its end: see its run; once more in {pause_s:.0f} s"
    if after.seen != after.started:
        return "files have changed: they are read once they come to rest"
    if being_written:
        more = " …" if len(being_written) > _NAMED else ""
        return f"read when they are whole: {', '.join(sorted(being_written)[:_NAMED])}{more}"
    return f"nothing has changed in any of {catalogues}" if catalogues else "the folder holds no catalogue"


def _generation_sensor(names: Names, jobs: Jobs, every_s: int) -> dg.SensorDefinition:
    @dg.sensor(
        job=jobs.generate_images,
        minimum_interval_seconds=every_s,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Keeps generation going without anyone clicking: starts every shard that has images missing and "
        "room under the budget, and resumes runs that were killed. One run a shard at a time. **Spends money** with a "
        "key, up to the budget, so it is off until you turn it on. A shard that you stop stays stopped.",
    )
    def generation_sensor(
        context: dg.SensorEvaluationContext, nano_banana: NanoBananaResource
    ) -> dg.SensorResult | dg.SkipReason:
        """Start `generate_images` for shards with work left."""
        try:
            most = most_active(context.instance)
            return start_shards(context.instance, names, nano_banana, most=most, started_by="generation_sensor")
        except UserError as error:
            return dg.SkipReason(str(error))

    return generation_sensor


def most_active(instance: dg.DagsterInstance) -> int:
    """Shards that are started or queued at once: enough that no worker waits for the next tick, and no long queue."""
    running = instance.get_concurrency_config().pool_config.default_pool_limit or 0
    return max(_LEAST_ACTIVE, running * _QUEUED_FOR_EACH)


def start_shards(
    instance: dg.DagsterInstance,
    names: Names,
    nano_banana: NanoBananaResource,
    *,
    most: int,
    started_by: str,
    pausing: bool = True,
) -> dg.SensorResult | dg.SkipReason:
    """Runs for the shards that should be started now, so that at most so many are under way. Raises `UserError`.

    `pausing` leaves alone what was tried a short while ago.
    """
    end_dead_runs(instance)
    with nano_banana.open_workspace() as workspace:
        work = workspace.ledger.shard_work()
        facts = gather(instance, names, workspace, work, now=time.time())
    braking_s = brake_s(latest_runs(instance, names), facts.now)
    if braking_s:
        return dg.SkipReason(
            f"the latest runs all failed for you to mend: see the last one; next try in {braking_s:.0f} s"
        )
    past_of, room = partial(past_runs, instance, names), max(0, most - len(facts.active))
    choice = choose(work, facts, past_of, most=room, pausing=pausing)
    if not choice.start:
        plans = sorted(set(facts.unapproved.values())) if Waiting.UNAPPROVED in choice.waiting else []
        return dg.SkipReason("; ".join([str(choice), *(f"`nanobanana approve {plan}`" for plan in plans)]))
    known = set(instance.get_dynamic_partitions(names.shards))
    missing = [shard for shard in choice.start if shard not in known]
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(partition_key=shard, tags={STARTED_BY_TAG: names.tag(started_by)}) for shard in choice.start
        ],
        dynamic_partitions_requests=[names.partitions.build_add_request(missing)] if missing else [],
    )


@dataclass(frozen=True, slots=True)
class ReportCursor:
    """Up to when runs are in the reports, and when the last report was started: seconds since the epoch."""

    reported_until: float = 0.0
    started_at: float = 0.0

    @classmethod
    def read(cls, text: str | None) -> Self:
        """From the sensor's cursor."""
        return cls(**json.loads(text)) if text else cls()

    def due(self, latest_end: float | None, *, generating: bool, now: float) -> bool:
        """Whether there is something new to report; while shards are still being generated, only every few minutes."""
        if latest_end is None or latest_end <= self.reported_until:
            return False
        return not generating or now >= self.started_at + _REPORT_PAUSE_S


def _report_sensor(names: Names, jobs: Jobs, every_s: int) -> dg.SensorDefinition:
    @dg.sensor(
        job=jobs.report_costs,
        minimum_interval_seconds=every_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Brings the costs, the cost report and the gallery up to date after shards were generated: at once "
        "when all is quiet, every five minutes while more are under way. Free.",
    )
    def report_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Start `report_costs` after generation."""
        cursor, now = ReportCursor.read(context.cursor), time.time()
        mine = {STARTED_BY_TAG: names.tag("report_sensor")}
        # Not only `generation_sensor`, which may be off: a killed run would look as if it still worked.
        end_dead_runs(context.instance)
        hand_out_again(context.instance)
        ended = context.instance.get_run_records(
            dg.RunsFilter(
                tags=names.generation_tags,
                statuses=_ENDED,
                updated_after=datetime.fromtimestamp(cursor.reported_until, UTC),
            ),
            order_by="update_timestamp",
            limit=1,
        )
        latest_end = ended[0].update_timestamp.timestamp() if ended else None
        under_way = _unfinished(context.instance, names.generation_tags)
        due = cursor.due(latest_end, generating=bool(under_way), now=now)
        if not due and repeated_in_s(context.instance, mine, now) != 0:
            return dg.SkipReason(
                "nothing was generated since the last report" if latest_end is None else "more is under way"
            )
        if _unfinished(context.instance, mine):
            return dg.SkipReason("a report is being made")
        until = cursor.reported_until if latest_end is None else latest_end
        return dg.SensorResult(
            run_requests=[dg.RunRequest(tags=mine)], cursor=json.dumps(asdict(ReportCursor(until, now)))
        )

    return report_sensor


def _unfinished(instance: dg.DagsterInstance, tags: dict[str, str]) -> Sequence[dg.RunRecord]:
    return instance.get_run_records(dg.RunsFilter(tags=tags, statuses=UNFINISHED), limit=1)


def _alert_sensor(every_s: int) -> dg.SensorDefinition:
    @dg.sensor(
        minimum_interval_seconds=every_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells a person, once, when a cap is used to 50, 80 or 100 %, when many attempts fail, when an "
        "outcome is unknown or overdue, when work lies open with nobody at it, when the provider refuses the key or "
        "the account. It says so in its tick, and where `NANOBANANA_ALERT_WEBHOOK` and `NANOBANANA_ALERT_EMAIL` say. "
        "Free.",
    )
    def alert_sensor(context: dg.SensorEvaluationContext, nano_banana: NanoBananaResource) -> dg.SkipReason:
        """Tell of what has come to hold since the last look."""
        try:
            with nano_banana.open_workspace() as workspace:
                told = tell(workspace.ledger, workspace.settings, sinks_of(workspace.settings, context.log))
        except UserError as error:
            return dg.SkipReason(str(error))
        for problem in told.problems:
            context.log.error("%s; it is told again at the next look", problem)
        if told.problems:
            return dg.SkipReason("; ".join(told.problems))
        return dg.SkipReason("; ".join(alert.text for alert in told.told) or _why_quiet(len(told.holding)))

    return alert_sensor


def _why_quiet(holding: int) -> str:
    return f"nothing new: {holding} told of before" if holding else "nothing to tell"
