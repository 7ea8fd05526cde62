"""Shards as Dagster's partitions. Which shard an item belongs to is the ledger's word."""

from typing import Final

import dagster as dg
from sqlalchemy.exc import IntegrityError

from nanobanana_pipeline.errors import UserError

PARTITION_TAG: Final = "dagster/partition"
BACKFILL_TAG: Final = "dagster/backfill"
_TRIES: Final = 20


def add_shards(instance: dg.DagsterInstance, partitions: str, shards: list[str]) -> list[str]:
    """Make partitions of the shards that are none yet; returns those. None is ever deleted: its runs stay findable."""
    for _ in range(_TRIES):
        known = set(instance.get_dynamic_partitions(partitions))
        new = [shard for shard in shards if shard not in known]
        try:
            if new:
                instance.add_dynamic_partitions(partitions, new)
        except IntegrityError:
            # On SQLite Dagster looks first and inserts then: another process has made some of them in between.
            continue
        return new
    raise UserError(
        f"the shards can't be made partitions of {partitions}: others change them all the time; run it again"
    )
