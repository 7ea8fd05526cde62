"""Setting right what a crash or a power cut has left: torn tables, rows that were never written, half-written images.

Everything is made again from the ledger and the catalogue, at no cost. What is torn, and how it is told, is
`storage`'s; which shards' rows are behind is `staleness`'s.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import orjson
import sqlalchemy as sa

from nanobanana_pipeline.generation.evidence import refuse_older_ledger
from nanobanana_pipeline.generation.publishing import publish_prompts, publish_shard
from nanobanana_pipeline.generation.staleness import differences
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema, statement
from nanobanana_pipeline.ledger.database import through_deadlocks
from nanobanana_pipeline.storage.repair import Repair

_READ_AGAIN = frozenset({"prompts", "rejected_prompts"})
"""Tables that come from the catalogues as they are now."""

_TO_REBUILD = "to_rebuild"
_NOTED = sa.select(schema.meta.c.value).where(schema.meta.c.key == _TO_REBUILD)


@dataclass(slots=True)
class Mended:
    """What was found and done."""

    repairs: list[Repair] = field(default_factory=list)
    rebuilt: frozenset[str] = frozenset()
    """Tables that had lost rows, now or to a repair that was killed before it had written them again."""
    shards: list[str] = field(default_factory=list)
    left: frozenset[str] = frozenset()
    """Shards whose rows still lag, left to the caller."""

    @property
    def read_catalogues_again(self) -> bool:
        """Whether the next reading of the catalogues will read all of them, changed or not."""
        return bool(self.rebuilt & _READ_AGAIN)


def mend_tables(
    workspace: Workspace, *, everything: bool = False, current: bool = False, later: Collection[str] = ()
) -> Mended:
    """Mend the tables, and write the rows they lack; with `everything` all of them anew. Quick when all is well.

    `current` tables are known to be as the ledger has it (see `rest`): only what is torn is looked for. Shards whose
    rows the caller is about to write itself come `later`. Raises `UserError`, with nothing written, when the ledger is
    older than the tables.
    """
    mended = Mended(repair_tables(workspace), _to_rebuild(workspace))
    if current and not mended.repairs and not mended.rebuilt:
        return mended
    found = differences(workspace)
    refuse_older_ledger(workspace, found.attempts)
    if everything or mended.read_catalogues_again:
        _forget_fingerprints(workspace)
        for catalogue in _catalogues(workspace):
            publish_prompts(workspace, catalogue)
    with workspace.ledger.database.read() as connection:
        every = statement.all_shards(connection)
    # A table of images may be torn while the others are whole: no count in them would show it.
    all_anew = everything or "images" in mended.rebuilt
    mended.left = frozenset() if all_anew else frozenset(found.stale).intersection(later)
    mended.shards = every if all_anew else [shard for shard in found.stale if shard not in mended.left]
    for shard in mended.shards:
        publish_shard(workspace, shard)
    if mended.rebuilt:
        _note_to_rebuild(workspace, lambda names: names - mended.rebuilt)
    return mended


def repair_tables(workspace: Workspace) -> list[Repair]:
    """Take away what is torn. Which tables lose rows by it is in the ledger first, until they are written again."""

    def before_loss(name: str) -> None:
        _note_to_rebuild(workspace, lambda names: names | {name})

    return workspace.tables.repair(before_loss)


def _to_rebuild(workspace: Workspace) -> frozenset[str]:
    with workspace.ledger.database.read() as connection:
        noted = connection.execute(_NOTED).scalar_one_or_none()
    return frozenset(orjson.loads(noted or "[]"))


def _note_to_rebuild(workspace: Workspace, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
    database = workspace.ledger.database
    with database.write() as connection:
        # Without a row nothing is held, and on PostgreSQL two repairs beside each other lost one's note.
        fresh = database.upsert(schema.meta).values(key=_TO_REBUILD, value="[]")
        connection.execute(fresh.on_conflict_do_nothing())
        noted = connection.execute(database.lock_rows(_NOTED)).scalar_one_or_none()
        names = orjson.dumps(sorted(change(frozenset(orjson.loads(noted or "[]"))))).decode()
        entry = database.upsert(schema.meta).values(key=_TO_REBUILD, value=names)
        connection.execute(entry.on_conflict_do_update(index_elements=["key"], set_={"value": entry.excluded.value}))


def _forget_fingerprints(workspace: Workspace) -> None:
    """Have every catalogue read again: which rows are rejected is in no ledger."""

    def forget() -> None:
        with workspace.ledger.database.write() as connection:
            connection.execute(schema.catalogues.update().values(fingerprint=None))

    # It comes to catalogues in the table's order, and a reading that finds some of them gone in that of their names.
    through_deadlocks(forget)


def _catalogues(workspace: Workspace) -> list[str]:
    with workspace.ledger.database.read() as connection:
        return list(connection.execute(sa.select(schema.catalogues.c.catalogue)).scalars())
