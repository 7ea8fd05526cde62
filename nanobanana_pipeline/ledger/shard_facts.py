"""Small questions about single shards, for those who watch over many: what is in them, and whether anyone works."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.leases import identity_of

_items = schema.items
_leases = schema.leases


def items_in(connection: Connection, shard: str) -> dict[str, tuple[str, int]]:
    """All items of the shard by id, removed ones included, with prompt_id and sample: the rows of its `results`."""
    query = sa.select(_items.c.item_id, _items.c.prompt_id, _items.c.sample).where(_items.c.shard == shard)
    return {row.item_id: (row.prompt_id, row.sample) for row in connection.execute(query)}


def shards_at_work(connection: Connection, now: int) -> set[str]:
    """Shards whose lease holds at `now` (milliseconds, the database's clock), unless its worker is known to be dead."""
    rows = connection.execute(sa.select(_leases).where(_leases.c.expires_at > now))
    return {row.shard for row in rows if not identity_of(row).known_dead()}


def fingerprints(connection: Connection) -> dict[str, str]:
    """What each catalogue's files looked like when they were last entered in full; empty where they were not."""
    table = schema.catalogues
    rows = connection.execute(sa.select(table.c.catalogue, table.c.fingerprint).order_by(table.c.catalogue))
    return {row.catalogue: row.fingerprint or "" for row in rows}


def registered_at(connection: Connection) -> dict[str, int]:
    """When each catalogue was last entered in the ledger, in milliseconds."""
    table = schema.catalogues
    rows = connection.execute(
        sa.select(table.c.catalogue, table.c.registered_at).where(table.c.registered_at.is_not(None))
    )
    return {row.catalogue: row.registered_at for row in rows}
