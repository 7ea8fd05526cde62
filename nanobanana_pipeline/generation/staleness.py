"""Which shards' rows in the tables are behind the ledger: a run was killed between its last entry and its tables.

Counts and sums are compared, not rows: every entry that a table shows changes one of them. Writing the rows anew is
`publishing`'s business.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.generation.publishing import STATUS_OF, usd
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import ItemState

_items = schema.items
_attempts = schema.attempts

COMPARED: Final = ("results", "attempts")
"""The tables that are held against the ledger."""

Mark = frozenset[tuple[Any, ...]]
"""The groups of a shard's rows, each with its counts and sums."""


@dataclass(frozen=True, slots=True)
class Differences:
    """The shards whose rows differ from the ledger, by table; some may be known to the tables alone."""

    results: frozenset[str]
    attempts: frozenset[str]
    known: frozenset[str]

    @property
    def stale(self) -> list[str]:
        """The shards that can be written anew from the ledger, in order."""
        return sorted((self.results | self.attempts) & self.known)


def differences(workspace: Workspace) -> Differences:
    """Hold the tables `results` and `attempts` against the ledger."""
    # Tables first: what is entered meanwhile makes a shard look stale, which costs a commit, and never the other way.
    results, attempts = _marks(_written_results(workspace)), _marks(_written_attempts(workspace))
    with workspace.ledger.database.read() as connection:
        return Differences(
            results=_differing(results, _marks(_entered_items(connection))),
            attempts=_differing(attempts, _marks(_entered_attempts(connection))),
            known=frozenset(connection.execute(sa.select(schema.shards.c.shard)).scalars()),
        )


def stale_shards(workspace: Workspace) -> list[str]:
    """The shards whose rows of `results` or `attempts` differ from the ledger, in order."""
    return differences(workspace).stale


def shards_of_other_attempts(workspace: Workspace, catalogue: str) -> frozenset[str]:
    """The shards of a catalogue whose rows of `attempts` differ from the ledger, known to the ledger or not."""
    written = _marks(_written_attempts(workspace, catalogue))
    with workspace.ledger.database.read() as connection:
        return _differing(written, _marks(_entered_attempts(connection, catalogue)))


def _differing(written: dict[str, Mark], entered: dict[str, Mark]) -> frozenset[str]:
    return frozenset(shard for shard in written.keys() | entered.keys() if written.get(shard) != entered.get(shard))


def _entered_items(connection: Connection) -> Iterable[tuple[Any, ...]]:
    columns = (_items.c.shard, _items.c.state, _items.c.active)
    query = sa.select(*columns, sa.func.count(), sa.func.sum(_items.c.attempts)).group_by(*columns)
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])
    for shard, state, active, items, attempts in connection.execute(query):
        # Several states are one status.
        group = groups[shard, STATUS_OF[ItemState(state)], bool(active)]
        group[0] += items
        group[1] += int(attempts)
    return [(*group, *sums) for group, sums in groups.items()]


def _entered_attempts(connection: Connection, catalogue: str | None = None) -> Iterable[tuple[Any, ...]]:
    columns = (_attempts.c.shard, _attempts.c.state)
    sums = (sa.func.sum(_attempts.c.cost_micros), sa.func.sum(_attempts.c.at_risk_micros))
    query = sa.select(*columns, sa.func.count(), *sums).group_by(*columns)
    if catalogue is not None:
        shards = sa.select(schema.shards.c.shard).where(schema.shards.c.catalogue == catalogue)
        query = query.where(_attempts.c.shard.in_(shards))
    for row in connection.execute(query):
        shard, state, attempts, cost, at_risk = row
        yield shard, state, attempts, usd(int(cost)), usd(int(at_risk))


def _written_results(workspace: Workspace) -> Iterable[tuple[Any, ...]]:
    rows = workspace.tables.read("results", ["shard", "status", "active", "attempts"])
    return _grouped(rows, ["shard", "status", "active"], [("attempts", "count"), ("attempts", "sum")])


def _written_attempts(workspace: Workspace, catalogue: str | None = None) -> Iterable[tuple[Any, ...]]:
    only = None if catalogue is None else {"catalogue": catalogue}
    rows = workspace.tables.read("attempts", ["shard", "state", "cost_usd", "at_risk_usd"], only)
    return _grouped(rows, ["shard", "state"], [("state", "count"), ("cost_usd", "sum"), ("at_risk_usd", "sum")])


def _grouped(rows: pa.Table, by: list[str], sums: list[tuple[str, str]]) -> Iterable[tuple[Any, ...]]:
    grouped = rows.group_by(by).aggregate(sums)
    columns = [*by, *(f"{column}_{function}" for column, function in sums)]
    return zip(*(grouped.column(name).to_pylist() for name in columns), strict=True)


def _marks(groups: Iterable[tuple[Any, ...]]) -> dict[str, Mark]:
    marks: defaultdict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for shard, *group in groups:
        marks[shard].add(tuple(group))
    return {shard: frozenset(mark) for shard, mark in marks.items()}
