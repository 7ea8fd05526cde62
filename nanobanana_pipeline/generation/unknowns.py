"""Outcomes that nobody knows: requests sent without an answer, and tasks that never ended; and what a person decides.

The money of such an attempt stays at risk whatever is decided: a person's word ends the waiting, not the possibility
that it was billed. Nothing is sent from here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.publishing import publish_shard
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.entries import Attempt
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline.ledger.work import open_attempts

Decision = Literal["resubmit", "abandon"]

HELD_STATES = (AttemptState.UNKNOWN, AttemptState.OVERDUE)
"""Attempts that a person may decide about."""

_THEN = {"resubmit": ItemState.PENDING, "abandon": ItemState.FAILED}


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided: how many attempts, and the micro-dollars that stay at risk for them."""

    attempts: int
    at_risk_micros: int


def held_attempts(ledger: Ledger, *, catalogue: str | None = None, ids: Sequence[str] = ()) -> list[Attempt]:
    """Attempts of unknown outcome and overdue ones, oldest first: of a catalogue, or those whose ids begin so.

    Raises `UserError` for an id that is none of them, or the beginning of several.
    """
    with ledger.database.read() as connection:
        held = list(open_attempts(connection, states=HELD_STATES, catalogue=catalogue))
    if not ids:
        return held
    chosen: dict[str, Attempt] = {}
    for given in ids:
        found = [attempt for attempt in held if given and attempt.attempt_id.startswith(given)]
        if len(found) != 1:
            said = "no attempt of unknown outcome begins with" if not found else f"{len(found)} attempts begin with"
            raise UserError(f"{said} {given!r}: take an id from `nanobanana unknown list`")
        chosen[found[0].attempt_id] = found[0]
    return list(chosen.values())


def decide(workspace: Workspace, attempts: Sequence[Attempt], decision: Decision) -> Decided:
    """Close the attempts. Their items are submitted again by the next run (`resubmit`), or count as failed (`abandon`).

    An attempt that was settled meanwhile, by a late answer, is left as it is.
    """

    def close(postings: Postings) -> list[Attempt]:
        then = _THEN[decision]
        return [attempt for attempt in attempts if postings.move(attempt, AttemptState.ABANDONED, then=then)]

    closed = workspace.ledger.post_alone(close)
    for shard in sorted({attempt.shard for attempt in closed}):
        publish_shard(workspace, shard)
    return Decided(len(closed), sum(attempt.holding.at_risk for attempt in closed))
