"""Puts the parts of `orchestration` together. Nothing is made or decided here.

`build_defs` returns fresh definitions and lets a test, a script or another deployment swap a part. Building them opens
no ledger, no folder and no connection.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from nanobanana_pipeline.orchestration.assets import catalogue, reporting
from nanobanana_pipeline.orchestration.assets.generation import build_generation
from nanobanana_pipeline.orchestration.jobs import JOBS
from nanobanana_pipeline.orchestration.maintenance import maintain_tables
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.orchestration.schedules import SCHEDULES
from nanobanana_pipeline.orchestration.sensors import SENSORS
from nanobanana_pipeline.orchestration.session import Session
from nanobanana_pipeline.settings import Settings, load_settings


def build_defs(
    *,
    settings: Settings | None = None,
    session: Session | None = None,
    resources: Mapping[str, Any] | None = None,
    executor: dg.ExecutorDefinition | None = None,
    **overrides: Any,
) -> dg.Definitions:
    """The pipeline's definitions.

    `settings` default to the environment; a key in them must also be in NANOBANANA_API_KEY, as only that name is passed
    on. `session` is shared by all runs of this process. `resources` are added, or take the place of `nano_banana`.
    Further arguments go to `Definitions` in place of ours. Raises `UserError` when a setting is wrong.
    """
    known = {"nano_banana": NanoBananaResource.from_settings(settings or load_settings()), **(resources or {})}
    for resource in known.values():
        if isinstance(resource, NanoBananaResource):
            resource.refuse_secrets_by_value()
    parts: dict[str, Any] = {
        "assets": [
            catalogue.prompt_catalogue,
            catalogue.prompts,
            build_generation(session),
            reporting.cost_daily,
            reporting.reconciliation,
            reporting.cost_report,
            reporting.gallery,
        ],
        "jobs": (*JOBS, maintain_tables),
        "sensors": SENSORS,
        "schedules": SCHEDULES,
        "resources": known,
        # In one process: another for each step costs seconds. A job's own executor would not reach the runs that
        # the Materialize button and backfills start, so it is set for all of them here.
        "executor": executor or dg.in_process_executor,
    }
    return dg.Definitions(**(parts | overrides))
