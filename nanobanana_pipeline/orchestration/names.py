"""What a pipeline's parts are called in Dagster, such that several pipelines can share one instance.

The first pipeline's names are public and have nothing before them. Those of another bear its name wherever Dagster
keeps one list for all code locations (assets, partitions, pools, tags of runs). Jobs, sensors and schedules belong to
their code location, and are called the same in each.
"""

from dataclasses import dataclass
from typing import Final

import dagster as dg

WORK_TAG: Final = "nanobanana/work"


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one pipeline; None is the first."""

    pipeline: str | None = None

    def key(self, asset: str) -> dg.AssetKey:
        """An asset's key."""
        return dg.AssetKey([*self.prefix, asset])

    @property
    def prefix(self) -> list[str]:
        """What stands before an asset's name in its key."""
        return [] if self.pipeline is None else [self.pipeline]

    def tag(self, value: str) -> str:
        """The value of a tag by which this pipeline's runs are told from another's."""
        return value if self.pipeline is None else f"{self.pipeline}/{value}"

    @property
    def shards(self) -> str:
        """The set of partitions, keys `<catalogue>-<NNNNNN>`; materialising `prompts` adds what is missing."""
        return "shards" if self.pipeline is None else f"{self.pipeline}_shards"

    @property
    def partitions(self) -> dg.DynamicPartitionsDefinition:
        """One partition a shard. Which shard an item belongs to is the ledger's word."""
        return dg.DynamicPartitionsDefinition(name=self.shards)

    @property
    def pool(self) -> str:
        """Bounds how many of this pipeline's shards generate at once, over all runs of one Dagster instance."""
        return "nanobanana_api" if self.pipeline is None else f"nanobanana_api_{self.pipeline}"

    @property
    def generation_tags(self) -> dict[str, str]:
        """Finds this pipeline's runs of generation, whichever job or click they came from."""
        return {WORK_TAG: self.tag("generation")}

    def is_generation(self, run: dg.DagsterRun) -> bool:
        """Whether a run is this pipeline's generation, also one in the queue, which is told by what was clicked on."""
        if WORK_TAG in run.tags:
            return run.tags[WORK_TAG] == self.tag("generation")
        return self.key("images") in (run.asset_selection or ())
