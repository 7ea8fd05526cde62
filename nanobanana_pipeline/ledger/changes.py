"""A number that every change to items, attempts and money raises, in its own transaction.

Whoever saw the book at one number need not look again while it stays. It says nothing of what was changed.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database

_KEY: Final = "changes"


def count_change(database: Database, connection: Connection) -> None:
    """Raise the number; in the transaction that makes the change."""
    value = schema.meta.c.value
    raised = sa.cast(sa.cast(value, sa.BigInteger) + 1, sa.Text)
    entry = database.upsert(schema.meta).values(key=_KEY, value="1")
    connection.execute(entry.on_conflict_do_update(index_elements=["key"], set_={"value": raised}))


def changes(connection: Connection) -> int:
    """The number as it is now."""
    query = sa.select(schema.meta.c.value).where(schema.meta.c.key == _KEY)
    return int(connection.execute(query).scalar_one_or_none() or 0)
