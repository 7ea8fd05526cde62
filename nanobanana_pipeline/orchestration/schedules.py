"""Schedules: what happens by the clock. Off until a person turns them on."""

from collections.abc import Iterator
from typing import Final

import dagster as dg

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration.jobs import Jobs
from nanobanana_pipeline.orchestration.maintenance import maintain_tables
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.orchestration.partitions import add_shards
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.orchestration.sensors import start_shards

NIGHTLY: Final = "15 1 * * *"
MOST_A_NIGHT: Final = 500
"""Shards that are queued in one night, of 1,000 prompts each by default."""


def build_schedules(names: Names, jobs: Jobs, nightly: str | None = None) -> tuple[dg.ScheduleDefinition, ...]:
    """The schedules of one pipeline; `nightly` is when generation starts, as cron says it."""

    @dg.schedule(
        job=jobs.generate_images,
        cron_schedule=nightly or NIGHTLY,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Each night at 01:15 UTC, with a new day's budget: starts every shard that has images missing, "
        f"deferred ones and those that may be tried again included, up to {MOST_A_NIGHT} shards. **Spends money** "
        "with a key, up to the budget.",
    )
    def nightly_generation(
        context: dg.ScheduleEvaluationContext, nano_banana: NanoBananaResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        """Start `generate_images` for shards with work left."""
        try:
            result = start_shards(
                context.instance,
                names,
                nano_banana,
                most=MOST_A_NIGHT,
                started_by="nightly_generation",
                pausing=False,
            )
        except UserError as error:
            result = dg.SkipReason(str(error))
        if isinstance(result, dg.SkipReason):
            yield result
            return
        for request in result.dynamic_partitions_requests or ():
            add_shards(context.instance, request.partitions_def_name, list(request.partition_keys))
        for request in result.run_requests or ():
            # A daemon that is started anew in the middle of a tick knows by the key what it has queued already; without
            # one, Dagster refuses the tick as soon as there is more than one run in it.
            shard = request.partition_key
            yield dg.RunRequest(run_key=shard, partition_key=shard, tags=request.tags)

    daily_cost_report = dg.ScheduleDefinition(
        name="daily_cost_report",
        job=jobs.report_costs,
        cron_schedule="20 0 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Each night at 00:20 UTC, when a day's costs are complete: brings costs, cost report and gallery "
        "up to date. Free.",
    )
    nightly_maintenance = dg.ScheduleDefinition(
        name="nightly_maintenance",
        job=maintain_tables,
        cron_schedule="40 4 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Each night at 04:40 UTC: keeps the tables quick. Worth its while from some hundred shards on. "
        "Free.",
    )
    return nightly_generation, daily_cost_report, nightly_maintenance
