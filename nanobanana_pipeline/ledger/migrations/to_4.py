"""Version 4: when the images of a paid task were last asked for in vain, and for how long they have been."""

import sqlalchemy as sa
from alembic.operations import Operations


def upgrade(operations: Operations) -> None:
    """Add the columns; a process of version 3 leaves them as they are, and the next failed delivery fills them."""
    operations.add_column("attempts", sa.Column("delivery_failed_at", sa.BigInteger))
    vain = sa.Column("delivery_vain_ms", sa.BigInteger, nullable=False, server_default="0")
    operations.add_column("attempts", vain)
