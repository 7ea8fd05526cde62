"""A person's word that a costly run may go ahead.

With `NANOBANANA_APPROVE_ABOVE_USD` set, a run whose plan may cost more waits for `nanobanana approve PLAN`, or for a
cap of its own. An approval is for money: it covers the plan that it names, and what is left of that plan after a stop
or a crash, but never more than the plan's own upper estimate.

Dagster works a plan off in many runs, a shard each. They are judged together, by the plan that was made when their
catalogue was entered and by how much of it is left; else a plan in a hundred parts would never be asked about.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import statement
from nanobanana_pipeline.ledger.shard_facts import registered_at
from nanobanana_pipeline.ledger.states import UNDECIDED_STATES, WAITING_STATES, ItemState
from nanobanana_pipeline.ledger.work import ShardWork, sent_again
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.reporting import figures
from nanobanana_pipeline.reporting.costs import shown
from nanobanana_pipeline.reporting.draft import Wanted
from nanobanana_pipeline.reporting.plan import Plan, plan_registered

PLANS: Final = "plans"
"""The folder of saved plans and approvals, under the output."""

_MICROS_A_USD: Final = 1_000_000
_PLANS_KEPT: Final = 100
"""Plans that nobody approved are made anew with each catalogue; older ones than this go."""

_log = logging.getLogger(__name__)


class ApprovalNeededError(UserError):
    """A run that may cost much waits for a person; says how to approve it."""


class Saved(BaseModel):
    """A plan that was shown to a person; `approved_at` is None until someone approved it. Money in micro-dollars."""

    model_config = ConfigDict(frozen=True)

    hash: str
    created_at: int
    catalogues: tuple[str, ...]
    to_make: int
    cost_micros: tuple[int, int, int]
    duration_s: tuple[float, float, float]
    whole: bool = True
    """Of all that is waiting in its catalogues; not of a shard, or of so many items."""
    approved_at: int | None = None

    @classmethod
    def of(cls, plan: Plan) -> "Saved":
        """What is kept of a plan."""
        return cls(
            hash=plan.hash,
            created_at=plan.created_at,
            catalogues=tuple(catalogue.name for catalogue in plan.catalogues if catalogue.to_make),
            to_make=plan.to_make,
            cost_micros=(round(plan.cost.p10), round(plan.cost.p50), round(plan.cost.p90)),
            duration_s=(plan.duration_s.p10, plan.duration_s.p50, plan.duration_s.p90),
            whole=plan.whole,
        )

    def rest(self, left: int) -> "Saved":
        """The same plan with so many items left to make, in proportion."""
        p10, p50, p90 = (round(micros * left / self.to_make) if self.to_make else 0 for micros in self.cost_micros)
        return self.model_copy(update={"to_make": left, "cost_micros": (p10, p50, p90)})


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a run may do: pay for what is planned under `plan_hash`, or (`refusal`) only finish what is under way."""

    plan_hash: str | None = None
    refusal: ApprovalNeededError | None = None


def save(workspace: Workspace, plan: Plan) -> Saved:
    """Keep a plan, so that it can be approved, and held against what came of it. An approval that it has stays."""
    plans = saved_plans(workspace)
    before = next((one for one in plans if one.hash == plan.hash), None)
    kept = Saved.of(plan).model_copy(update={"approved_at": before.approved_at if before else None})
    _write(workspace, kept)
    _forget(workspace, [one for one in plans if one.approved_at is None][: 1 - _PLANS_KEPT])
    return kept


def saved_plans(workspace: Workspace) -> list[Saved]:
    """Every saved plan, oldest first; without those that can't be read, each of which is told."""
    filesystem, base = open_uri(f"{workspace.output.rstrip('/')}/{PLANS}")
    filesystem.invalidate_cache(base)
    names = [path.rpartition("/")[2] for path in filesystem.find(base) if path.endswith(".json")]
    found: list[Saved] = []
    for name in names:
        # Another process may have forgotten it since it was listed.
        with suppress(FileNotFoundError):
            text = workspace.images.read(f"{PLANS}/{name}")
            try:
                found.append(Saved.model_validate_json(text))
            except ValidationError:
                _log.warning("the plan %s/%s can't be read, and counts as none: take it away, or plan anew", base, name)
    return sorted(found, key=lambda one: one.created_at)


def approve(workspace: Workspace, plan_hash: str) -> Saved:
    """Approve a saved plan, named by its hash or the beginning of it. Raises `UserError` when that names none."""
    plans = saved_plans(workspace)
    matching = [one for one in plans if plan_hash and one.hash.startswith(plan_hash)]
    if len(matching) != 1:
        known = ", ".join(one.hash for one in plans[-5:]) or "none"
        what = f"{len(matching)} plans begin with" if matching else "there is no plan"
        raise UserError(f"{what} {plan_hash!r}; the latest are: {known}; make one with `nanobanana plan`")
    with workspace.ledger.database.read() as connection:
        now = workspace.ledger.database.now(connection)
    approved = matching[0].model_copy(update={"approved_at": now})
    _write(workspace, approved)
    return approved


def approval_of(workspace: Workspace, plan: Saved) -> Literal["not needed", "given", "needed"]:
    """Whether a run by this plan may go ahead: it is cheap enough, or an approval has money left for it."""
    threshold = workspace.settings.approve_above_usd
    if threshold is None or plan.to_make == 0 or plan.cost_micros[2] <= threshold * _MICROS_A_USD:
        return "not needed"
    covered = any(
        one.approved_at is not None
        and set(plan.catalogues) <= set(one.catalogues)
        # What is left of an approved plan has another hash, so money decides: spent since, and still to be spent.
        and _spent_since(workspace, one) + plan.cost_micros[1] <= one.cost_micros[2]
        for one in saved_plans(workspace)
    )
    return "given" if covered else "needed"


def rule(workspace: Workspace, plan: Saved) -> Ruling:
    """What a run by this plan may do."""
    if approval_of(workspace, plan) != "needed":
        return Ruling(plan.hash)
    _, most_likely, at_most = plan.cost_micros
    refusal = ApprovalNeededError(
        f"this may cost {shown(at_most)} (P90; most likely {shown(most_likely)}), and above "
        f"${workspace.settings.approve_above_usd} NANOBANANA_APPROVE_ABOVE_USD asks for your approval: "
        f"`nanobanana approve {plan.hash}`, or give the run a cap of its own (--max-cost, or max_cost_usd in the "
        "launchpad)"
    )
    return Ruling(plan.hash, refusal)


def rule_of_shard(workspace: Workspace, shard: str, wanted: Wanted, *, capped: bool) -> Ruling:
    """What a run over one shard may do; `capped`: it has a cap of its own, and so a person's word.

    It is judged with all that is left of the plan for its catalogue, unless it is to begin only so many items; what is
    to be paid for again is judged by the shard.
    """
    with workspace.ledger.database.read() as connection:
        catalogue = statement.catalogue_of_shard(connection, shard)
        entered = registered_at(connection)
    plans = saved_plans(workspace)
    if capped or workspace.settings.approve_above_usd is None:
        plan = _latest(plans, catalogue, entered)
        return Ruling(plan.hash if plan else None)
    ruling = Ruling()
    if wanted.limit is None:
        waiting = _waiting(workspace, workspace.ledger.shard_work())
        plan = _what_is_left(workspace, waiting, catalogue, plans, entered)
        ruling = rule(workspace, plan) if plan else ruling
    if wanted != Wanted() and ruling.refusal is None:
        ruling = rule(workspace, save(workspace, plan_registered(workspace, catalogue, wanted, shard=shard)))
    return ruling


def unapproved(workspace: Workspace, work: Sequence[ShardWork]) -> Mapping[str, str]:
    """The catalogues whose waiting items need an approval and have none, each with the hash of the plan to approve."""
    if workspace.settings.approve_above_usd is None:
        return {}
    with workspace.ledger.database.read() as connection:
        entered = registered_at(connection)
    plans = saved_plans(workspace)
    found: dict[str, str] = {}
    waiting = _waiting(workspace, work)
    for catalogue in waiting:
        plan = _what_is_left(workspace, waiting, catalogue, plans, entered)
        if plan is not None and approval_of(workspace, plan) == "needed":
            found[catalogue] = plan.hash
    return found


def _what_is_left(
    workspace: Workspace, waiting: Mapping[str, int], catalogue: str, plans: Sequence[Saved], entered: Mapping[str, int]
) -> Saved | None:
    """What is left of the latest plan for a catalogue; None when nothing waits there."""
    if catalogue not in waiting:
        return None
    plan = _latest(plans, catalogue, entered)
    if plan is not None:
        rest = plan.rest(sum(waiting.get(name, 0) for name in plan.catalogues))
        if _spent_since(workspace, plan) + rest.cost_micros[1] <= plan.cost_micros[2]:
            return rest
    # None yet, or no approval of it could cover what is left: a person would be asked for the same word for ever.
    return save(workspace, plan_registered(workspace, catalogue, Wanted()))


def _latest(plans: Sequence[Saved], catalogue: str, entered: Mapping[str, int]) -> Saved | None:
    """The latest plan for all of a catalogue that was made since the catalogue was entered."""
    since = entered.get(catalogue, 0)
    of_all = (one for one in reversed(plans) if one.whole and catalogue in one.catalogues)
    return next((one for one in of_all if one.created_at >= since), None)


def _waiting(workspace: Workspace, work: Sequence[ShardWork]) -> Mapping[str, int]:
    """Items that runs would begin by themselves, by catalogue; without those catalogues that have none."""
    settings = workspace.settings
    again: Mapping[str, int] = {}
    if settings.on_unknown == "resubmit":
        # Overdue ones as well: they were paid for again without a question, and held against no approval.
        undecided = [shard.shard for shard in work if _count(shard, UNDECIDED_STATES)]
        with workspace.ledger.database.read() as connection:
            again = sent_again(connection, undecided, settings.max_attempts)
    found: Counter[str] = Counter()
    for shard in work:
        found[shard.catalogue] += _count(shard, WAITING_STATES) + again.get(shard.shard, 0)
    return +found


def _count(work: ShardWork, states: Sequence[ItemState]) -> int:
    return sum(work.states.get(state, 0) for state in states)


def _spent_since(workspace: Workspace, saved: Saved) -> int:
    """Money spent, reserved or at risk in the plan's catalogues since it was made."""
    with workspace.ledger.database.read() as connection:
        return figures.held_between(connection, saved.catalogues, saved.created_at)[1]


def _write(workspace: Workspace, saved: Saved) -> None:
    workspace.images.write(f"{PLANS}/{saved.hash}.json", saved.model_dump_json(indent=2).encode())


def _forget(workspace: Workspace, plans: Sequence[Saved]) -> None:
    filesystem, base = open_uri(f"{workspace.output.rstrip('/')}/{PLANS}")
    for one in plans:
        with suppress(FileNotFoundError):
            filesystem.rm_file(f"{base}/{one.hash}.json")
