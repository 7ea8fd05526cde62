"""Version 3: open tasks are counted by account, and who waits for room is known to the others."""

import sqlalchemy as sa
from alembic.operations import Operations


def upgrade(operations: Operations) -> None:
    """Add the columns, with defaults for what a process of version 2 still enters."""
    operations.add_column("leases", sa.Column("account", sa.Text, nullable=False, server_default=""))
    operations.add_column("leases", sa.Column("waiting", sa.Boolean, nullable=False, server_default=sa.false()))
