"""Setting right what a crash or a power cut has left: torn tables, rows that were never written, half-written images.

Everything is made again from the ledger and the catalogue, at no cost. What is torn, and how it is told, is
`storage`'s; which shards' rows are behind is `staleness`'s.
"""

from dataclasses import dataclass, field

import sqlalchemy as sa

from nanobanana_pipeline.generation.evidence import refuse_older_ledger
from nanobanana_pipeline.generation.publishing import publish_prompts, publish_shard
from nanobanana_pipeline.generation.staleness import differences
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema, statement
from nanobanana_pipeline.storage.repair import Repair

_READ_AGAIN = frozenset({"prompts", "rejected_prompts"})
"""Tables that come from the catalogues as they are now."""


@dataclass(slots=True)
class Mended:
    """What was found and done."""

    repairs: list[Repair] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)

    @property
    def read_catalogues_again(self) -> bool:
        """Whether the next reading of the catalogues will read all of them, changed or not."""
        return any(repair.rebuild and repair.table in _READ_AGAIN for repair in self.repairs)


def mend_tables(workspace: Workspace, *, everything: bool = False, current: bool = False) -> Mended:
    """Mend the tables, and write the rows they lack; with `everything` all of them anew. Quick when all is well.

    `current` tables are known to be as the ledger has it (see `rest`): only what is torn is looked for. Raises
    `UserError`, with nothing written, when the ledger is older than the tables.
    """
    mended = Mended(workspace.tables.repair())
    if current and not mended.repairs:
        return mended
    found = differences(workspace)
    refuse_older_ledger(workspace, found.attempts)
    rebuild = {repair.table for repair in mended.repairs if repair.rebuild}
    if everything or rebuild & _READ_AGAIN:
        _forget_fingerprints(workspace)
        for catalogue in _catalogues(workspace):
            publish_prompts(workspace, catalogue)
    with workspace.ledger.database.read() as connection:
        every = statement.all_shards(connection)
    # A table of images may be torn while the others are whole: no count in them would show it.
    mended.shards = every if everything or "images" in rebuild else found.stale
    for shard in mended.shards:
        publish_shard(workspace, shard)
    return mended


def _forget_fingerprints(workspace: Workspace) -> None:
    """Have every catalogue read again: which rows are rejected is in no ledger."""
    with workspace.ledger.database.write() as connection:
        connection.execute(schema.catalogues.update().values(fingerprint=None))


def _catalogues(workspace: Workspace) -> list[str]:
    with workspace.ledger.database.read() as connection:
        return list(connection.execute(sa.select(schema.catalogues.c.catalogue)).scalars())
