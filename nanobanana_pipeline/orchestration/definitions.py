"""Puts the parts of `orchestration` together. Nothing is made or decided here.

`build_defs` returns fresh definitions and lets a test, a script or another deployment swap a part. Building them opens
no ledger, no folder and no connection.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from nanobanana_pipeline.orchestration.assets.catalogue import build_catalogue
from nanobanana_pipeline.orchestration.assets.generation import build_generation
from nanobanana_pipeline.orchestration.assets.reporting import build_reports
from nanobanana_pipeline.orchestration.jobs import build_jobs
from nanobanana_pipeline.orchestration.maintenance import maintain_tables
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.orchestration.schedules import build_schedules
from nanobanana_pipeline.orchestration.sensors import build_sensors
from nanobanana_pipeline.orchestration.session import Session
from nanobanana_pipeline.settings import Settings, load_settings


def build_defs(
    *,
    name: str | None = None,
    settings: Settings | None = None,
    session: Session | None = None,
    resources: Mapping[str, Any] | None = None,
    executor: dg.ExecutorDefinition | None = None,
    sensor_interval_s: int | None = None,
    nightly: str | None = None,
    **overrides: Any,
) -> dg.Definitions:
    """A pipeline's definitions.

    `name` is for a pipeline beside the first, in a code location of its own: `autumn` reads NANOBANANA_AUTUMN_…, and
    what NANOBANANA_… says for all. `settings` take the environment's place; a key in them must also be in its variable,
    as only that name is passed on. `session` is shared by all runs of this process. `resources` are added, or take the
    place of `nano_banana`. `sensor_interval_s` has all sensors look that often, `nightly` (as cron says it, in UTC)
    says when `nightly_generation` starts. Further arguments go to `Definitions` in place of ours. Raises `UserError`
    when a setting is wrong.
    """
    chosen = settings or (load_settings() if name is None else load_settings(pipeline=name))
    names = Names(chosen.pipeline)
    known = {"nano_banana": NanoBananaResource.from_settings(chosen), **(resources or {})}
    for resource in known.values():
        if isinstance(resource, NanoBananaResource):
            resource.refuse_secrets_by_value()
    jobs = build_jobs(names)
    parts: dict[str, Any] = {
        "assets": [*build_catalogue(names), build_generation(names, session), *build_reports(names)],
        "jobs": (jobs.refresh_catalogue, jobs.generate_images, jobs.report_costs, maintain_tables),
        "sensors": build_sensors(names, jobs, sensor_interval_s),
        "schedules": build_schedules(names, jobs, nightly),
        "resources": known,
        # In one process: another for each step costs seconds. A job's own executor would not reach the runs that
        # the Materialize button and backfills start, so it is set for all of them here.
        "executor": executor or dg.in_process_executor,
    }
    return dg.Definitions(**(parts | overrides))
