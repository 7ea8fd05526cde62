"""The jobs over assets that people, sensors, schedules and the command line start, and the run configs for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition as AssetJob

from nanobanana_pipeline.orchestration.assets.generation import OP
from nanobanana_pipeline.orchestration.launchpad import GenerationConfig
from nanobanana_pipeline.orchestration.names import Names

REFRESH_CATALOGUE: Final = "refresh_catalogue"
GENERATE_IMAGES: Final = "generate_images"
REPORT_COSTS: Final = "report_costs"


@dataclass(frozen=True, slots=True)
class Jobs:
    """A pipeline's jobs over assets."""

    refresh_catalogue: AssetJob
    generate_images: AssetJob
    report_costs: AssetJob


def build_jobs(names: Names) -> Jobs:
    """The jobs of one pipeline."""
    return Jobs(
        refresh_catalogue=dg.define_asset_job(
            REFRESH_CATALOGUE,
            # Observed first: what is read is then known to be of the files as they are.
            selection=_selection(names, "prompt_catalogue", "prompts", "rejected_prompts"),
            description="Read the catalogues again: check every row, enter new and edited prompts, list what is "
            "rejected. Free.",
        ),
        generate_images=dg.define_asset_job(
            GENERATE_IMAGES,
            selection=_selection(names, "images", "results", "attempts"),
            tags=names.generation_tags,
            description="Make the missing images of one shard, and write its tables. **Costs money** with a key, up "
            "to the budget; what has its image costs nothing again.",
        ),
        report_costs=dg.define_asset_job(
            REPORT_COSTS,
            selection=_selection(names, "cost_daily", "cost_report", "gallery", "reconciliation"),
            description="Bring the costs by day, the cost report and the gallery up to date, and look whether invoices "
            "drift from the books. Free.",
        ),
    )


def _selection(names: Names, *assets: str) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*map(names.key, assets))


def refresh_config(catalogues: Sequence[str] | None = None) -> dict[str, Any]:
    """Run config of `refresh_catalogue`, for these catalogues or all."""
    return {"ops": {"prompts": {"config": {"catalogues": list(catalogues or ())}}}}


def generation_config(**options: Any) -> dict[str, Any]:
    """Run config of `generate_images`. Options are the fields of `GenerationConfig`; `ValueError` for a wrong one."""
    return {"ops": {OP: {"config": GenerationConfig(**options).model_dump()}}}
