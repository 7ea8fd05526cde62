"""Attempts that the tables show and the ledger does not know: then the ledger is an older copy, or another one.

A table's commit comes after the ledger's, so whatever crashes, the tables never show what the ledger lacks. Where they
do, going on would pay again for what they show, and writing them anew from the ledger would remove the only trace of
it. So nothing is submitted and no row is replaced before this was looked at. Taking them over is `adoption`'s business.
"""

from collections.abc import Iterable

import sqlalchemy as sa

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import MOVES, AttemptState

_attempts = schema.attempts

_IDS_A_QUERY = 500


def refuse_older_ledger(workspace: Workspace, shards: Iterable[str]) -> None:
    """Raise `UserError` when the tables show more of these shards' attempts than the ledger knows."""
    for shard in sorted(shards):
        ahead = attempts_ahead(workspace, shard)
        if ahead:
            raise UserError(
                f"the ledger {workspace.ledger.database.place} is older than the tables in {workspace.output}, or "
                f"another one: it lacks {len(ahead)} attempts of shard {shard}, and going on would pay for them again; "
                "put the newest ledger back, or have `nanobanana repair --adopt` enter what the tables show"
            )


def attempts_ahead(workspace: Workspace, shard: str) -> list[str]:
    """The ids of the shard's attempts that the tables show, and that the ledger lacks or has in an earlier state."""
    # Tables first: what a worker enters meanwhile can then only make the ledger the newer of the two.
    written = workspace.tables.read("attempts", ["attempt_id", "state"], {"shard": shard})
    with workspace.ledger.database.read() as connection:
        query = sa.select(_attempts.c.attempt_id, _attempts.c.state).where(_attempts.c.shard == shard)
        entered = {row.attempt_id: row.state for row in connection.execute(query)}
        rows = zip(written.column("attempt_id").to_pylist(), written.column("state").to_pylist(), strict=True)
        ahead = {attempt_id: state for attempt_id, state in rows if _is_ahead(state, entered.get(attempt_id))}
        # What was adopted may stand in another shard than the tables had it in.
        ids = list(ahead)
        for start in range(0, len(ids), _IDS_A_QUERY):
            page = _attempts.c.attempt_id.in_(ids[start : start + _IDS_A_QUERY])
            for row in connection.execute(sa.select(_attempts.c.attempt_id, _attempts.c.state).where(page)):
                if not _is_ahead(ahead[row.attempt_id], row.state):
                    del ahead[row.attempt_id]
    return list(ahead)


def _is_ahead(written: str, entered: str | None) -> bool:
    """Whether a state in the tables can't have led to the one in the ledger (None: the ledger lacks the attempt)."""
    return entered is None or AttemptState(entered) not in _LEADS_TO[AttemptState(written)]


def _everything_after(state: AttemptState) -> frozenset[AttemptState]:
    reached, new = {state}, {state}
    while new:
        new = {following for each in new for following in MOVES[each]} - reached
        reached |= new
    return frozenset(reached)


_LEADS_TO = {state: _everything_after(state) for state in AttemptState}
