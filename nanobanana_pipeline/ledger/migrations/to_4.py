"""Version 4: since when the images of a paid task are asked for in vain."""

import sqlalchemy as sa
from alembic.operations import Operations


def upgrade(operations: Operations) -> None:
    """Add the column; a process of version 3 leaves it empty, and the next failed delivery fills it."""
    operations.add_column("attempts", sa.Column("delivery_failed_at", sa.BigInteger))
