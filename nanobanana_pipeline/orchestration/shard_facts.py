"""Looking up what `shard_choice` decides by, in a handful of queries however many shards there are."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

import dagster as dg
from dagster import DagsterRunStatus

from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.shard_facts import registered_at, shards_at_work
from nanobanana_pipeline.ledger.work import ShardWork
from nanobanana_pipeline.model_specs.pricing import reservation
from nanobanana_pipeline.orchestration.partitions import PARTITION_TAG
from nanobanana_pipeline.orchestration.run_tags import ENDED_TAG, Ended
from nanobanana_pipeline.orchestration.shard_choice import REMEMBERED_S, End, Facts, PastRun, full_catalogues

UNFINISHED: Final = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
_ENDED: Final = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
_MOST_RECORDS: Final = 2000
_MOST_STOPPED: Final = 200


def gather(instance: dg.DagsterInstance, workspace: Workspace, work: Sequence[ShardWork], *, now: float) -> Facts:
    """Everything that `choose` wants to know about these shards; `now` in seconds since the epoch."""
    shards = {entry.shard for entry in work}
    unfinished = instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED))
    recent = instance.get_run_records(
        dg.RunsFilter(statuses=_ENDED, updated_after=datetime.fromtimestamp(now - REMEMBERED_S, UTC)),
        limit=_MOST_RECORDS,
    )
    ledger, settings = workspace.ledger, workspace.settings
    with ledger.database.read() as connection:
        database_now = ledger.database.now(connection)
        at_work = shards_at_work(connection, database_now)
        entered = registered_at(connection)
    day = datetime.fromtimestamp(database_now / 1000, UTC).date()
    spec = workspace.spec
    # The least that any image could need: what doesn't leave room for that leaves room for nothing.
    needed = min(reservation(spec, 1, 0, resolution, day) for resolution in spec.resolutions)
    return Facts(
        now=now,
        active=frozenset(_shard_of(record) for record in unfinished) & shards,
        at_work=frozenset(at_work),
        past=past_runs(recent, shards),
        registered_at={name: at / 1000 for name, at in entered.items()},
        full_catalogues=full_catalogues(
            sorted({entry.catalogue for entry in work}),
            Caps(day=_micros(settings.budget_usd), catalogue=_micros(settings.budget_catalogue_usd)),
            ledger.counters(),
            day=day.isoformat(),
            needed=needed,
        ),
        stopped_at=_stopped(instance, shards),
        resubmits_unknown=settings.on_unknown == "resubmit",
    )


def past_runs(records: Iterable[dg.RunRecord], shards: set[str]) -> list[PastRun]:
    """The runs of these shards that are over, newest end first."""
    runs = [
        PastRun(_shard_of(record), end_of(record.dagster_run), _ended_at(record))
        for record in records
        if _shard_of(record) in shards
    ]
    return sorted(runs, key=lambda run: -run.ended_at)


def end_of(run: dg.DagsterRun) -> End:
    """How a run that is over ended."""
    noted = run.tags.get(ENDED_TAG)
    if run.status is DagsterRunStatus.SUCCESS:
        return End.SUCCEEDED
    if run.status is DagsterRunStatus.CANCELED:
        # Taken out of the queue, it had no chance to leave a note: that too was a person.
        return End.ABANDONED if noted == Ended.BY_A_SIGNAL else End.STOPPED
    return End.BROKEN if noted == Ended.BY_AN_ERROR else End.ABANDONED


def _stopped(instance: dg.DagsterInstance, shards: set[str]) -> dict[str, float]:
    """Shards whose latest run a person stopped, however long ago, and when."""
    canceled = instance.get_run_records(dg.RunsFilter(statuses=[DagsterRunStatus.CANCELED]), limit=_MOST_RECORDS)
    stopped: dict[str, float] = {}
    for shard in list(dict.fromkeys(map(_shard_of, canceled)))[:_MOST_STOPPED]:
        if shard not in shards:
            continue
        latest = instance.get_run_records(dg.RunsFilter(tags={PARTITION_TAG: shard}), limit=1)
        if latest and latest[0].dagster_run.is_finished and end_of(latest[0].dagster_run) is End.STOPPED:
            stopped[shard] = _ended_at(latest[0])
    return stopped


def _shard_of(record: dg.RunRecord) -> str:
    return record.dagster_run.tags.get(PARTITION_TAG, "")


def _ended_at(record: dg.RunRecord) -> float:
    return record.end_time or record.update_timestamp.timestamp()


def _micros(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd.scaleb(6))
