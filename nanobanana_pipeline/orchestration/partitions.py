"""Shards as Dagster's partitions. Which shard an item belongs to is the ledger's word."""

from typing import Final

import dagster as dg

PARTITION_TAG: Final = "dagster/partition"
BACKFILL_TAG: Final = "dagster/backfill"


def add_shards(instance: dg.DagsterInstance, partitions: str, shards: list[str]) -> list[str]:
    """Make partitions of the shards that are none yet; returns those. None is ever deleted: its runs stay findable."""
    known = set(instance.get_dynamic_partitions(partitions))
    new = [shard for shard in shards if shard not in known]
    if new:
        instance.add_dynamic_partitions(partitions, new)
    return new
