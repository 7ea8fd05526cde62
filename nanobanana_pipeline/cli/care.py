"""`unknown` and `repair`: what a person decides or mends."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from nanobanana_pipeline.cli.console import NEEDS_ATTENTION, counted, dollars, note, say, say_json, usd_text, warn

if TYPE_CHECKING:
    from nanobanana_pipeline.generation.recovery import MissingImage
    from nanobanana_pipeline.generation.unknowns import Decision
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.ledger.entries import Attempt

_ID_SHOWN = 20
_MISSING_SHOWN = 10


@click.group(short_help="Decide about requests whose outcome nobody knows.")
def unknown() -> None:
    """Requests that were sent without an answer, and tasks that never ended.

    They may have been billed, and may not: so they are never sent again by themselves, and their money counts as at
    risk until a late answer, or you, settle them. Look in the provider's console first, if it has one.
    """


@unknown.command("list", short_help="List them.")
@click.option("--catalogue", metavar="NAME", help="Only of this catalogue.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_(catalogue: str | None, as_json: bool) -> None:  # noqa: FBT001 - click gives flags by name
    """List requests of unknown outcome, oldest first."""
    held = _held(catalogue)
    at_risk = sum(attempt.holding.at_risk for attempt in held)
    if as_json:
        say_json({"unknown": [_as_json(attempt) for attempt in held], "at_risk_usd": usd_text(at_risk)})
        return
    for attempt in held:
        sent = datetime.fromtimestamp(attempt.created_at / 1000, UTC)
        task = f", task {attempt.task_id}" if attempt.task_id else ""
        say(
            f"{attempt.attempt_id[:_ID_SHOWN]}  {attempt.state:<8} {sent:%Y-%m-%d %H:%M:%S}Z "
            f"{dollars(attempt.holding.at_risk):>8}  {attempt.catalogue}/{attempt.prompt_id} #{attempt.sample}{task}"
        )
    if not held:
        say("nothing is of unknown outcome")
        return
    say(f"{len(held):,} of unknown outcome, {dollars(at_risk)} at risk")
    say("send again: nanobanana unknown resubmit ID… | --all     give up: nanobanana unknown abandon ID… | --all")


@unknown.command(short_help="Send them again (they may be billed twice).")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--catalogue", metavar="NAME", help="With --all: only of this catalogue.")
def resubmit(ids: tuple[str, ...], everything: bool, catalogue: str | None) -> None:  # noqa: FBT001 - as above
    """Have the next run submit them again. What was billed after all is then paid twice; its money stays at risk.

    \b
    Examples:
      nanobanana unknown resubmit 0193c2ab
      nanobanana unknown resubmit --all && nanobanana run
    """
    _decide("resubmit", ids, everything=everything, catalogue=catalogue)
    say("the next `nanobanana run` submits them")


@unknown.command(short_help="Give them up.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--catalogue", metavar="NAME", help="With --all: only of this catalogue.")
def abandon(ids: tuple[str, ...], everything: bool, catalogue: str | None) -> None:  # noqa: FBT001 - as above
    """Count them as failed. Their money stays at risk, as only an invoice can tell whether they were billed."""
    _decide("abandon", ids, everything=everything, catalogue=catalogue)


@click.command(short_help="Mend tables and files after a crash, at no cost.")
@click.option("--all", "everything", is_flag=True, help="Write every table anew, whatever it looks like.")
@click.option("--adopt", is_flag=True, help="The ledger was lost or is an older copy: enter what the tables show.")
def repair(everything: bool, adopt: bool) -> int:  # noqa: FBT001 - click gives flags by name
    """Find torn tables, missing rows and half-written files, and make them again from the ledger. Costs nothing.

    Every run does the quick part of this by itself. Image files that are missing are fetched again from the provider,
    which has been paid for them; what it no longer has is listed.

    \b
    Exit codes:
      0  all is well now
      1  could not be done
      3  image files are missing that could not be fetched again
    """
    from nanobanana_pipeline.generation.adoption import adopt_tables
    from nanobanana_pipeline.generation.intake import refresh
    from nanobanana_pipeline.generation.mending import mend_tables
    from nanobanana_pipeline.generation.recovery import missing_images
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.costs import publish_cost_daily
    from nanobanana_pipeline.settings import load_settings

    with Workspace.open(load_settings()) as workspace:
        note("looking at the tables …")
        adopted = adopt_tables(workspace) if adopt else None
        mended = mend_tables(workspace, everything=everything)
        if everything or mended.read_catalogues_again:
            refresh(workspace)
        publish_cost_daily(workspace)
        note("looking at the files …")
        leftovers = workspace.images.clean_temp()
        lost = missing_images(workspace)
        reasons = _recover(workspace, lost) if lost else {}
    if adopted is not None:
        say(
            f"entered in the ledger from the tables: {counted(adopted.items, 'item')} and "
            f"{counted(adopted.attempts, 'attempt')}, {dollars(adopted.spent_micros)} spent and "
            f"{dollars(adopted.at_risk_micros)} at risk"
        )
    for found in mended.repairs:
        say(f"{found.table}: {found.what}")
    if mended.shards:
        say(f"written anew from the ledger: the rows of {counted(len(mended.shards), 'shard')}")
    if leftovers:
        say(f"removed {counted(len(leftovers), 'half-written file')}")
    gone = [image for image in lost if image.item_id in reasons]
    if len(gone) < len(lost):
        say(f"fetched again, at no cost: {counted(len(lost) - len(gone), 'image file')} that {_was(lost)} missing")
    if not (adopted or mended.repairs or mended.shards or leftovers or lost):
        say("all is well")
    if not gone:
        return 0
    warn(
        f"missing: {counted(len(gone), 'image file')}. Copy them back from a backup, or make one anew, at its usual "
        "price: nanobanana run --regenerate ITEM"
    )
    for image in gone[:_MISSING_SHOWN]:
        say(f"  {image.item_id}  {image.path or image.prompt_id}: {reasons[image.item_id]}")
    return NEEDS_ATTENTION


def _recover(workspace: "Workspace", lost: "list[MissingImage]") -> dict[str, str]:
    """Fetch the images again; returns why some could not be, by item."""
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.generation.recovery import recover_images
    from nanobanana_pipeline.orchestration.resources import NanoBananaResource

    stamp = workspace.ledger.stamp
    if stamp is not None and stamp.mode == "live" and workspace.settings.api_key is None:
        return {image.item_id: "set NANOBANANA_API_KEY to have it fetched again" for image in lost}
    note(f"asking the provider for {counted(len(lost), 'missing image')} …")
    try:
        with NanoBananaResource.from_settings(workspace.settings).provider(workspace) as access:
            recovered = recover_images(workspace, lost, access.open_provider)
    except UserError as error:
        return {image.item_id: str(error) for image in lost}
    known = {image.item_id for image in lost} - set(recovered.items)
    return {item_id: recovered.reasons.get(item_id, "no attempt of it is known") for item_id in known}


def _was(images: "list[MissingImage]") -> str:
    return "was" if len(images) == 1 else "were"


def _held(catalogue: str | None) -> "list[Attempt]":
    from nanobanana_pipeline.cli.looking import has_ledger
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    if not has_ledger(settings):
        return []
    from nanobanana_pipeline.generation.unknowns import held_attempts
    from nanobanana_pipeline.ledger.ledger import Ledger

    with Ledger(settings.ledger) as ledger:
        return held_attempts(ledger, catalogue=catalogue)


def _decide(decision: "Decision", ids: tuple[str, ...], *, everything: bool, catalogue: str | None) -> None:
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.generation.unknowns import decide, held_attempts
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.costs import publish_cost_daily
    from nanobanana_pipeline.settings import load_settings

    if bool(ids) == everything:
        raise UserError("name some by their ids, or all of them by --all: nanobanana unknown list")
    with Workspace.open(load_settings()) as workspace:
        attempts = held_attempts(workspace.ledger, catalogue=catalogue, ids=ids)
        decided = decide(workspace, attempts, decision)
        publish_cost_daily(workspace)
    word = "to be submitted again" if decision == "resubmit" else "given up"
    say(f"{decided.attempts:,} {word}; {dollars(decided.at_risk_micros)} stays at risk, as they may have been billed")


def _as_json(attempt: "Attempt") -> dict[str, Any]:
    return {
        "attempt_id": attempt.attempt_id,
        "item_id": attempt.item_id,
        "catalogue": attempt.catalogue,
        "prompt_id": attempt.prompt_id,
        "sample": attempt.sample,
        "shard": attempt.shard,
        "state": attempt.state,
        "task_id": attempt.task_id,
        "sent_at": datetime.fromtimestamp(attempt.created_at / 1000, UTC).isoformat(),
        "at_risk_usd": usd_text(attempt.holding.at_risk),
    }


COMMANDS: tuple[click.Command, ...] = (unknown, repair)
