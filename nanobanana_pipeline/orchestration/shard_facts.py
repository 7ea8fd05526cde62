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
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.orchestration.partitions import PARTITION_TAG
from nanobanana_pipeline.orchestration.run_tags import Ended
from nanobanana_pipeline.orchestration.shard_choice import End, Facts, PastRun, full_catalogues
from nanobanana_pipeline.reporting.approval import unapproved

UNFINISHED: Final = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
_ENDED: Final = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
_RUNS_A_LOOK: Final = 1000
"""Runs read for fifty shards; older ones hardly matter."""
_BRAKING_RUNS: Final = 20


def gather(
    instance: dg.DagsterInstance, names: Names, workspace: Workspace, work: Sequence[ShardWork], *, now: float
) -> Facts:
    """What `choose` wants to know about all of these shards; `now` in seconds since the epoch."""
    unfinished = _of_generation(instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED)), names)
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
        active=frozenset(map(_shard_of, unfinished)) & {entry.shard for entry in work},
        at_work=frozenset(at_work),
        registered_at={name: at / 1000 for name, at in entered.items()},
        full_catalogues=full_catalogues(
            sorted({entry.catalogue for entry in work}),
            Caps(day=_micros(settings.budget_usd), catalogue=_micros(settings.budget_catalogue_usd)),
            ledger.counters(),
            day=day.isoformat(),
            needed=needed,
        ),
        unapproved=unapproved(workspace, work),
        resubmits_unknown=settings.on_unknown == "resubmit",
    )


def past_runs(instance: dg.DagsterInstance, names: Names, shards: Sequence[str]) -> list[PastRun]:
    """The latest runs of these shards that are over."""
    # Another pipeline's catalogue may have the same name, and so its shards.
    filters = dg.RunsFilter(statuses=_ENDED, tags={PARTITION_TAG: list(shards)})
    return _past(_of_generation(instance.get_run_records(filters, limit=_RUNS_A_LOOK), names))


def latest_runs(instance: dg.DagsterInstance, names: Names) -> list[PastRun]:
    """The latest runs of generation that are over, whatever their shard."""
    filters = dg.RunsFilter(statuses=_ENDED, tags=names.generation_tags)
    return _past(instance.get_run_records(filters, limit=_BRAKING_RUNS, order_by="update_timestamp"))


def _of_generation(records: Iterable[dg.RunRecord], names: Names) -> list[dg.RunRecord]:
    return [record for record in records if names.is_generation(record.dagster_run)]


def _past(records: Iterable[dg.RunRecord]) -> list[PastRun]:
    return [PastRun(_shard_of(record), end_of(record.dagster_run), _ended_at(record)) for record in records]


def end_of(run: dg.DagsterRun) -> End:
    """How a run that is over ended."""
    noted = Ended.noted_on(run)
    if run.status is DagsterRunStatus.SUCCESS:
        return End.SUCCEEDED
    if run.status is DagsterRunStatus.CANCELED:
        # Taken out of the queue, it had no chance to leave a note: that too was a person.
        return End.ABANDONED if noted is Ended.BY_A_SIGNAL else End.STOPPED
    if noted is Ended.FOR_AN_APPROVAL:
        return End.UNAPPROVED
    return End.BROKEN if noted is Ended.BY_AN_ERROR else End.ABANDONED


def _shard_of(record: dg.RunRecord) -> str:
    return record.dagster_run.tags.get(PARTITION_TAG, "")


def _ended_at(record: dg.RunRecord) -> float:
    return record.end_time or record.update_timestamp.timestamp()


def _micros(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd.scaleb(6))
