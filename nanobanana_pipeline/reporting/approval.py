"""A person's word that a costly run may go ahead.

With `NANOBANANA_APPROVE_ABOVE_USD` set, a run whose plan may cost more waits for `nanobanana approve PLAN`, or for a
cap of its own in the launchpad. An approval is for money: it covers the plan that it names, and what is left of that
plan after a stop or a crash, but never more than the plan's own upper estimate.
"""

import time
from typing import Final

import fsspec
from pydantic import BaseModel, ConfigDict

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.reporting import figures
from nanobanana_pipeline.reporting.costs import shown
from nanobanana_pipeline.reporting.plan import Plan

PLANS: Final = "plans"
"""The folder of saved plans and approvals, under the output."""

_MICROS_A_USD: Final = 1_000_000


class Saved(BaseModel):
    """A plan that was shown to a person; `approved_at` is None until someone approved it. Money in micro-dollars."""

    model_config = ConfigDict(frozen=True)

    hash: str
    created_at: int
    catalogues: tuple[str, ...]
    to_make: int
    cost_micros: tuple[int, int, int]
    duration_s: tuple[float, float, float]
    approved_at: int | None = None


def save(workspace: Workspace, plan: Plan) -> Saved:
    """Keep a plan, so that it can be approved, and held against what came of it. An approval that it has stays."""
    before = next((one for one in saved_plans(workspace) if one.hash == plan.hash), None)
    kept = Saved(
        hash=plan.hash,
        created_at=plan.created_at,
        catalogues=tuple(catalogue.name for catalogue in plan.catalogues if catalogue.to_make),
        to_make=plan.to_make,
        cost_micros=(round(plan.cost.p10), round(plan.cost.p50), round(plan.cost.p90)),
        duration_s=(plan.duration_s.p10, plan.duration_s.p50, plan.duration_s.p90),
        approved_at=before.approved_at if before else None,
    )
    _write(workspace, kept)
    return kept


def saved_plans(workspace: Workspace) -> list[Saved]:
    """Every saved plan, oldest first."""
    filesystem, base = fsspec.core.url_to_fs(f"{workspace.output.rstrip('/')}/{PLANS}")
    filesystem.invalidate_cache(base)
    names = [path.rpartition("/")[2] for path in filesystem.find(base) if path.endswith(".json")]
    found = [Saved.model_validate_json(workspace.images.read(f"{PLANS}/{name}")) for name in names]
    return sorted(found, key=lambda one: one.created_at)


def approve(workspace: Workspace, plan_hash: str) -> Saved:
    """Approve a saved plan, named by its hash or the beginning of it. Raises `UserError` when that names none."""
    plans = saved_plans(workspace)
    matching = [one for one in plans if plan_hash and one.hash.startswith(plan_hash)]
    if len(matching) != 1:
        known = ", ".join(one.hash for one in plans[-5:]) or "none"
        what = f"{len(matching)} plans begin with" if matching else "there is no plan"
        raise UserError(f"{what} {plan_hash!r}; the latest are: {known}; make one with `nanobanana plan`")
    approved = matching[0].model_copy(update={"approved_at": time.time_ns() // 1_000_000})
    _write(workspace, approved)
    return approved


def approved(workspace: Workspace, plan: Plan) -> bool:
    """Whether a run by this plan may go ahead: it is cheap enough to need no approval, or has one with money left."""
    threshold = workspace.settings.approve_above_usd
    if threshold is None or plan.to_make == 0 or plan.cost.p90 <= threshold * _MICROS_A_USD:
        return True
    wanted = {catalogue.name for catalogue in plan.catalogues if catalogue.to_make}
    return any(
        one.approved_at is not None
        and wanted <= set(one.catalogues)
        # What is left of an approved plan has another hash, so money decides: spent since, and still to be spent.
        and (one.hash == plan.hash or _spent_since(workspace, one) + plan.cost.p50 <= one.cost_micros[2])
        for one in saved_plans(workspace)
    )


def require_approval(workspace: Workspace, plan: Plan) -> None:
    """Save a plan that needs an approval and has none, and raise `UserError` saying how to give it."""
    if approved(workspace, plan):
        return
    save(workspace, plan)
    raise UserError(
        f"this run may cost {shown(round(plan.cost.p90))} (P90; most likely {shown(round(plan.cost.p50))}), and above "
        f"${workspace.settings.approve_above_usd} NANOBANANA_APPROVE_ABOVE_USD asks for approval: "
        f"`nanobanana approve {plan.hash}`, or give max_cost_usd"
    )


def _spent_since(workspace: Workspace, saved: Saved) -> int:
    """Money spent, reserved or at risk in the plan's catalogues since it was made."""
    with workspace.ledger.database.read() as connection:
        return figures.held_between(connection, saved.catalogues, saved.created_at)[1]


def _write(workspace: Workspace, saved: Saved) -> None:
    workspace.images.write(f"{PLANS}/{saved.hash}.json", saved.model_dump_json(indent=2).encode())
