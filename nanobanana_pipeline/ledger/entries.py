"""What the book's readers and writers hand each other: items waiting for work, attempts, and answers to admissions."""

from dataclasses import dataclass, field
from enum import StrEnum

from nanobanana_pipeline.ledger.budget import Shortage
from nanobanana_pipeline.ledger.states import WAITING_STATES, AttemptState, Holding, ItemState, holding


class Cause(StrEnum):
    """Why an attempt is made. All but the first two are a person's decision to pay again."""

    NEW = "new"
    RETRY = "retry"
    RETRY_FAILED = "retry_failed"
    REGENERATE = "regenerate"
    RESUBMIT = "resubmit"


@dataclass(slots=True)
class Candidate:
    """An item as a worker saw it, for which it would like to make an attempt."""

    item_id: str
    catalogue: str
    prompt_id: str
    sample: int
    shard: str
    position: int
    priority: int
    request_hash: str
    campaign: str | None
    model: str
    resolution: str
    body: str
    state: ItemState
    attempts: int
    failures: int
    """Attempts of this request that the provider failed."""
    cause: Cause = Cause.NEW

    @property
    def state_if_refused(self) -> ItemState:
        """The item's state when nothing was sent for it after all: it waits, or has its image (its failure) still."""
        return ItemState.PENDING if self.state in WAITING_STATES else self.state


@dataclass(frozen=True, slots=True)
class Worker:
    """Who makes attempts: a run (and the run it began with), its budget scope, its plan, and the lease it holds."""

    owner: str
    run_id: str
    root_run_id: str
    run_scope: str
    plan_hash: str | None = None


@dataclass(slots=True)
class Attempt:
    """One attempt as its worker knows it; `Postings.move` keeps it and its row in step."""

    attempt_id: str
    item_id: str
    attempt: int
    catalogue: str
    shard: str
    prompt_id: str
    sample: int
    model: str
    resolution: str
    request_hash: str
    cause: Cause
    run_id: str
    root_run_id: str
    run_scope: str
    day: str
    state: AttemptState
    reserved_micros: int
    cost_micros: int
    submits: int
    polls: int
    created_at: int
    submitted_at: int | None
    completed_at: int | None
    delivery_failed_at: int | None
    delivery_vain_ms: int
    task_id: str | None
    urls: str | None
    text: str | None
    error_kind: str | None
    body: str
    failures: int
    """Attempts of this request that the provider failed before."""

    @property
    def holding(self) -> Holding:
        """Where this attempt's money stands now."""
        return holding(self.state, self.reserved_micros, self.cost_micros)


class BlockedBy(StrEnum):
    """What an admission waits for."""

    BUDGET = "budget"
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class InFlight:
    """Open tasks of an account, as one of its workers sees them."""

    total: int
    mine: int = 0
    others_waiting: int = 0
    """Other workers that have more to send than they were let."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Not admitted now: ask again after `wait_s`, or (budget, when nothing open could ease it) not in this run."""

    by: BlockedBy
    wait_s: float = 1.0
    shortage: Shortage | None = None


@dataclass(frozen=True, slots=True)
class Stale:
    """Not admitted: the item changed since the worker saw it (another worker has it, or the catalogue was edited)."""


@dataclass(slots=True)
class AdmissionRequest:
    """A candidate, or a refused attempt to be submitted again, with the money it needs."""

    candidate: Candidate
    reserve_micros: int
    again: Attempt | None = field(default=None)
