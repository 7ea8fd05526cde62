"""The state machines of the book: which states an attempt and an item can be in, and what moves are allowed.

Only facts about states belong here; the SQL that makes a move is in `postings`. Money follows the state and nothing
else (`holding`), so an attempt can never be counted twice: whatever path it took, its state says where its money
stands.
"""

from enum import StrEnum
from typing import NamedTuple


class AttemptState(StrEnum):
    """Where one attempt stands. See the diagram in docs/architecture.md."""

    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    STORED = "stored"
    UNUSABLE = "unusable"
    FAILED = "failed"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    OVERDUE = "overdue"
    ABANDONED = "abandoned"


class ItemState(StrEnum):
    """Where an item stands for its current request; `results.status` derives from it."""

    PENDING = "pending"
    OPEN = "open"
    UNKNOWN = "unknown"
    OVERDUE = "overdue"
    DONE = "done"
    FAILED = "failed"
    DEFERRED = "deferred"


WAITING_STATES = (ItemState.PENDING, ItemState.DEFERRED)
"""Items that wait for an attempt."""

UNDECIDED_STATES = (ItemState.UNKNOWN, ItemState.OVERDUE)
"""Items with an attempt of which nobody knows the outcome."""

S = AttemptState

MOVES: dict[AttemptState, frozenset[AttemptState]] = {
    S.SUBMITTING: frozenset({S.SUBMITTED, S.COMPLETED, S.FAILED, S.REFUSED, S.UNKNOWN}),
    S.SUBMITTED: frozenset({S.COMPLETED, S.FAILED, S.OVERDUE}),
    S.COMPLETED: frozenset({S.STORED, S.UNUSABLE}),
    # A late answer may say anything that an answer in time could have said.
    S.UNKNOWN: frozenset({S.SUBMITTED, S.COMPLETED, S.FAILED, S.REFUSED, S.ABANDONED}),
    S.OVERDUE: frozenset({S.COMPLETED, S.FAILED, S.ABANDONED}),
    # The same attempt once more under the same idempotency key: a refusal has billed nothing.
    S.REFUSED: frozenset({S.SUBMITTING}),
    S.STORED: frozenset(),
    S.UNUSABLE: frozenset(),
    S.FAILED: frozenset(),
    S.ABANDONED: frozenset(),
}
OPEN_STATES = (S.SUBMITTING, S.SUBMITTED, S.COMPLETED, S.UNKNOWN, S.OVERDUE)
"""At most one attempt of an item may be in one of these, by a unique index."""

IN_FLIGHT_STATES = (S.SUBMITTING, S.SUBMITTED)
"""What occupies the provider, as far as we know."""


class Holding(NamedTuple):
    """An attempt's money in integer micro-dollars, by the account it stands on."""

    reserved: int = 0
    spent: int = 0
    at_risk: int = 0

    def minus(self, other: "Holding") -> "Holding":
        """The change that leads from `other` to this."""
        return Holding(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def holding(state: AttemptState, reserved: int, cost: int) -> Holding:
    """On which account an attempt's money stands in `state`.

    An abandoned attempt stays at risk: a person's word ends the waiting, not the possibility that it was billed. Only
    an invoice can.
    """
    match state:
        case S.SUBMITTING | S.SUBMITTED:
            return Holding(reserved=reserved)
        case S.UNKNOWN | S.OVERDUE | S.ABANDONED:
            return Holding(at_risk=reserved)
        case S.COMPLETED | S.STORED | S.UNUSABLE | S.FAILED:
            return Holding(spent=cost)
        case S.REFUSED:
            return Holding()


ITEM_STATE_OF: dict[AttemptState, ItemState] = {
    S.SUBMITTING: ItemState.OPEN,
    S.SUBMITTED: ItemState.OPEN,
    S.COMPLETED: ItemState.OPEN,
    S.UNKNOWN: ItemState.UNKNOWN,
    S.OVERDUE: ItemState.OVERDUE,
    S.STORED: ItemState.DONE,
    S.UNUSABLE: ItemState.FAILED,
    S.FAILED: ItemState.FAILED,
    S.REFUSED: ItemState.FAILED,
    S.ABANDONED: ItemState.FAILED,
}
"""The item's state after a move, unless the caller knows better (an attempt that may be repeated leaves it pending)."""
