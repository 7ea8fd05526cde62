"""The jobs over assets that people, sensors, schedules and the command line start, and the run configs for them."""

from collections.abc import Sequence
from typing import Any, Final

import dagster as dg

from nanobanana_pipeline.orchestration.assets.generation import OP
from nanobanana_pipeline.orchestration.launchpad import GenerationConfig

REFRESH_CATALOGUE: Final = "refresh_catalogue"
GENERATE_IMAGES: Final = "generate_images"
REPORT_COSTS: Final = "report_costs"

refresh_catalogue = dg.define_asset_job(
    REFRESH_CATALOGUE,
    # Observed first: what is read is then known to be of the files as they are.
    selection=["prompt_catalogue", "prompts", "rejected_prompts"],
    description="Read the catalogues again: check every row, enter new and edited prompts, list what is rejected. "
    "Free.",
)

generate_images = dg.define_asset_job(
    GENERATE_IMAGES,
    selection=["images", "results", "attempts"],
    description="Make the missing images of one shard, and write its tables. **Costs money** with a key, up to the "
    "budget; what has its image costs nothing again.",
)

report_costs = dg.define_asset_job(
    REPORT_COSTS,
    selection=["cost_daily", "cost_report", "gallery", "reconciliation"],
    description="Bring the costs by day, the cost report and the gallery up to date, and look whether invoices drift "
    "from the books. Free.",
)

JOBS: Final = (refresh_catalogue, generate_images, report_costs)


def refresh_config(catalogues: Sequence[str] | None = None) -> dict[str, Any]:
    """Run config of `refresh_catalogue`, for these catalogues or all."""
    return {"ops": {"prompts": {"config": {"catalogues": list(catalogues or ())}}}}


def generation_config(**options: Any) -> dict[str, Any]:
    """Run config of `generate_images`. Options are the fields of `GenerationConfig`; `ValueError` for a wrong one."""
    return {"ops": {OP: {"config": GenerationConfig(**options).model_dump()}}}
