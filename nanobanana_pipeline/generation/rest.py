"""At rest: what stood when there was nothing left to do, so that the next look need not read all of it again.

With a million rows, holding the tables against the ledger and writing the reports takes minutes. A run that found
nothing to do notes what it found, and what it looked at: the ledger by the number of its changes, each table by its
identity and version. As long as all of those are the same, so is the answer. After any doubt all is looked at again.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import orjson
import sqlalchemy as sa

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.changes import changes
from nanobanana_pipeline.storage.schemas import SCHEMAS

_KEY: Final = "at_rest"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a look goes by. Reports speak of today, and another version may write them otherwise."""

    changes: int
    tables: dict[str, tuple[str, int] | None]
    day: str
    program: str


def look(workspace: Workspace) -> Mark:
    """The mark of the ledger and the tables as they are now."""
    # The ledger first: what is entered meanwhile makes the mark look old, which costs another look.
    with workspace.ledger.database.read() as connection:
        number = changes(connection)
    tables = {name: _identity(workspace, name) for name in SCHEMAS}
    return Mark(number, tables, datetime.now(UTC).date().isoformat(), version("nanobanana_pipeline"))


def _identity(workspace: Workspace, name: str) -> tuple[str, int] | None:
    try:
        return workspace.tables.identity(name)
    except UserError:
        # Torn: the run that looks here is about to mend it, and must not end before it does.
        return None


def found_at(workspace: Workspace, mark: Mark) -> dict[str, Any] | None:
    """What was found when there was nothing to do at this very mark; None when that was never noted."""
    query = sa.select(schema.meta.c.value).where(schema.meta.c.key == _KEY)
    with workspace.ledger.database.read() as connection:
        noted = connection.execute(query).scalar_one_or_none()
    if noted is None:
        return None
    note = orjson.loads(noted)
    return note["found"] if note["mark"] == _plain(mark) else None


def note(workspace: Workspace, mark: Mark, found: dict[str, Any]) -> None:
    """Note what was found at this mark."""
    entry = workspace.ledger.database.upsert(schema.meta).values(
        key=_KEY, value=orjson.dumps({"mark": _plain(mark), "found": found}).decode()
    )
    with workspace.ledger.database.write() as connection:
        connection.execute(entry.on_conflict_do_update(index_elements=["key"], set_={"value": entry.excluded.value}))


def _plain(mark: Mark) -> dict[str, Any]:
    return orjson.loads(orjson.dumps(mark))
