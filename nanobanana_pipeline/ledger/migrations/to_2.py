"""Version 2: the order of work by priority, and which approved plan an attempt was made under."""

import sqlalchemy as sa
from alembic.operations import Operations

from nanobanana_pipeline.ledger.schema import PRIORITISED


def upgrade(operations: Operations) -> None:
    """Add the columns, with defaults for what a process of version 1 still enters."""
    operations.add_column("items", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    operations.create_index(
        "items_prioritised",
        "items",
        ["shard", "priority"],
        sqlite_where=PRIORITISED,
        postgresql_where=PRIORITISED,
    )
    operations.add_column("attempts", sa.Column("plan_hash", sa.Text))
