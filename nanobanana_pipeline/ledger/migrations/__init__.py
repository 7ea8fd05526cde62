"""Bringing a ledger that an earlier version wrote up to date, by Alembic's operations.

A module here for each schema version but the first, with the step that leads to it. Steps only add: a process of the
version before may be at work on the same ledger, and must not stumble.
"""

from importlib import import_module

from sqlalchemy.engine import Connection


def upgrade(connection: Connection, found: int, wanted: int) -> None:
    """Take every step from schema version `found` to `wanted`, inside the caller's transaction."""
    # Half a second of imports that only a ledger of an earlier version needs.
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from alembic.operations import Operations  # noqa: PLC0415

    operations = Operations(MigrationContext.configure(connection))
    for version in range(found + 1, wanted + 1):
        import_module(f"{__name__}.to_{version}").upgrade(operations)
