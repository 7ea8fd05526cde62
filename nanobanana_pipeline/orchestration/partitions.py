"""What generation is cut into, and the pool that it runs in. Which shard an item belongs to is the ledger's word."""

from typing import Final

import dagster as dg

SHARDS_NAME: Final = "shards"
SHARDS: Final = dg.DynamicPartitionsDefinition(name=SHARDS_NAME)
"""One partition a shard, keys `<catalogue>-<NNNNNN>`; materialising `prompts` adds what is missing."""

POOL: Final = "nanobanana_api"
"""Bounds how many shards generate at once, over all runs of one Dagster instance."""

PARTITION_TAG: Final = "dagster/partition"
BACKFILL_TAG: Final = "dagster/backfill"


def add_shards(instance: dg.DagsterInstance, shards: list[str]) -> list[str]:
    """Make partitions of the shards that are none yet; returns those. None is ever deleted: its runs stay findable."""
    known = set(instance.get_dynamic_partitions(SHARDS_NAME))
    new = [shard for shard in shards if shard not in known]
    if new:
        instance.add_dynamic_partitions(SHARDS_NAME, new)
    return new
