"""Keeping tables of many shards quick: a job that nobody needs for its results, only for the next reader's sake.

What merging and deleting do is `storage`'s; when it happens is the schedule's.
"""

from typing import Final

import dagster as dg

from nanobanana_pipeline.orchestration.failures import at_work
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.storage.schemas import SCHEMAS
from nanobanana_pipeline.storage.tables import Conflict

MAINTAIN_TABLES: Final = "maintain_tables"


@dg.op(name="merge_and_delete", description="Merge each table's small files, and delete what no reader can still want.")
def _merge_and_delete(context: dg.OpExecutionContext, nano_banana: NanoBananaResource) -> None:
    with at_work(context), nano_banana.open_workspace() as workspace:
        for name in SCHEMAS:
            try:
                done = workspace.tables.maintain(name)
            except Conflict:
                # Rows of a file being merged were replaced meanwhile; the next night is soon enough.
                context.log.info("%s: a run was writing to it; left for the next time", name)
            else:
                context.log.info("%s: %d files merged, %d deleted", name, done.merged, done.deleted)


@dg.job(
    name=MAINTAIN_TABLES,
    description="Merge the tables' small files into larger ones, and delete files that were replaced over a week ago: "
    "each shard's commit leaves a file, and thousands make queries slow. Free, and safe while shards are generated.",
)
def maintain_tables() -> None:
    """Keep the tables quick."""
    _merge_and_delete()
