"""`plan`, `approve`, `reconcile` and `reprice`: what work will cost, may cost, and did cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from nanobanana_pipeline.cli.amounts import Dollars
from nanobanana_pipeline.cli.console import NEEDS_ATTENTION, clock, counted, dollars, note, say, say_json, warn
from nanobanana_pipeline.cli.progress import counting

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from nanobanana_pipeline.reporting.plan import Plan
    from nanobanana_pipeline.reporting.reconcile import Reconciliation
    from nanobanana_pipeline.settings import Settings

_DIFFERENCES_SHOWN: Final = 10


@click.command(short_help="What a run would make and cost; spends nothing.")
@click.option("--catalogue", metavar="NAME", help="Only this catalogue.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="For a run of N items at most.")
@click.option("--retry-failed", is_flag=True, help="For a run that tries failed items again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(catalogue: str | None, limit: int | None, retry_failed: bool, as_json: bool) -> None:  # noqa: FBT001 - by name
    """Tell what a run would make of every row, what it would cost and how long it would take.

    P10, P50 and P90: in one of ten cases it comes to less than the first, in one of ten to more than the last. They
    come from the price list at first, and from your own finished items once there are 30. Spends nothing. The plan is
    kept, so that it can be approved, and held against what came of it.

    \b
    Examples:
      nanobanana plan
      nanobanana plan --catalogue spring --limit 20
      nanobanana plan --json | jq .cost_usd.p90
    """
    from nanobanana_pipeline.generation.intake import chosen_sources
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.ledger.work import Rerun
    from nanobanana_pipeline.reporting.approval import approval_of, save
    from nanobanana_pipeline.reporting.draft import Wanted
    from nanobanana_pipeline.reporting.plan import plan as make
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    names = None if catalogue is None else [catalogue]
    if not chosen_sources(settings, names):
        warn(f"there is no catalogue in {settings.catalogue}: put a Parquet file there, or `nanobanana import` one")
    wanted = Wanted(limit, Rerun.RETRY_FAILED if retry_failed else None)
    with Workspace.open(settings) as workspace, counting("items looked at", quiet=as_json) as tick:
        planned = make(workspace, names, wanted, on_progress=tick)
        approval = approval_of(workspace, save(workspace, planned))
    if as_json:
        say_json({**planned.as_dict(), "approval": approval})
    else:
        _say_plan(planned, settings, approval)


@click.command(short_help="Let a costly plan be paid for.")
@click.argument("plan_hash", metavar="PLAN")
def approve(plan_hash: str) -> None:
    """Approve a plan that may cost more than NANOBANANA_APPROVE_ABOVE_USD, named by its first characters.

    It covers the plan and what is left of it after a stop, up to the plan's P90. Dagster's runs find it by themselves.

    \b
    Examples:
      nanobanana plan                  says the plan's name
      nanobanana approve 3f2a9c && nanobanana run
    """
    from nanobanana_pipeline.cli.looking import require_ledger
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.approval import approve as give
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    require_ledger(settings)
    with Workspace.open(settings) as workspace:
        given = give(workspace, plan_hash)
    say(f"approved: {counted(given.to_make, 'image')} for up to {dollars(given.cost_micros[2])} (plan {given.hash})")
    say("next: nanobanana run, or in Dagster materialise the shards of images")


@click.command(short_help="Hold an invoice against the books.")
@click.argument("invoice", type=click.Path(path_type=Path), metavar="INVOICE.csv")
@click.option("--mapping", type=click.Path(path_type=Path), metavar="FILE", help="TOML: which column is which.")
@click.option(
    "--tolerance",
    type=Dollars(least="0"),
    metavar="USD",
    help="What a line may differ by. Default: half of the last digit that the invoice has.",
)
@click.option("--correct", is_flag=True, help="Give the invoice the last word: costs become what it says.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def reconcile(
    invoice: Path,
    mapping: Path | None,
    tolerance: "Decimal | None",
    correct: bool,  # noqa: FBT001 - click gives flags by name
    as_json: bool,  # noqa: FBT001 - as above
) -> int:
    """Match each line of an invoice with the attempt it is for, and list what differs or is missing on either side.

    All of it goes into the table reconciliation. A line that can't be told apart (1,234 or 1.234?) is asked about, not
    guessed; docs/costs.md says what a mapping file may hold. Without --correct no cost is changed.

    \b
    Examples:
      nanobanana reconcile november.csv
      nanobanana reconcile november.csv --mapping provider.toml --correct
      nanobanana query "FROM reconciliation SELECT * WHERE status <> 'matched'"

    \b
    Exit codes:
      0  everything matches, or was corrected
      1  the invoice could not be read
      3  something differs, or is missing here or there
    """
    from nanobanana_pipeline.cli.looking import require_ledger
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.reconcile import reconcile as hold
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    require_ledger(settings)
    with Workspace.open(settings) as workspace:
        if not as_json:
            note("holding the invoice against the ledger …")
        found = hold(workspace, invoice, mapping=mapping, tolerance_usd=tolerance, correct=correct)
    if as_json:
        say_json(found.as_dict())
    else:
        _say_reconciliation(found)
    if correct and not found.ok and not found.names_tasks:
        warn(
            f"nothing was corrected: {found.invoice} names no task whose cost it could be. If a column of it does, say "
            "so in a mapping file, as task_id under [columns]; or ask the provider for a list by task"
        )
    return 0 if found.ok else NEEDS_ATTENTION


@click.command(short_help="Price past attempts by the price list as it is now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def reprice(as_json: bool) -> None:  # noqa: FBT001 - click gives flags by name
    """Let prices that came late (NANOBANANA_PRICES) reach back to the work done since they are valid.

    Restates what a price list priced, in the ledger, the tables and the caps; what the provider itself or an invoice
    said stays. Sends nothing and pays nothing; a second time changes nothing.

    \b
    Examples:
      NANOBANANA_PRICES=contract.toml nanobanana reprice
    """
    from nanobanana_pipeline.cli.console import usd_text
    from nanobanana_pipeline.cli.looking import require_ledger
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.repricing import reprice as restate
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    require_ledger(settings)
    with Workspace.open(settings) as workspace, counting("attempts looked at", quiet=as_json) as tick:
        done = restate(workspace, on_progress=tick)
    if as_json:
        before, after = usd_text(done.before_micros), usd_text(done.after_micros)
        say_json({"attempts": done.attempts, "left": done.left, "before_usd": before, "after_usd": after})
        return
    if done.attempts:
        before, after = dollars(done.before_micros), dollars(done.after_micros)
        say(f"{counted(done.attempts, 'attempt')} restated: {before} before, {after} now")
    elif not done.left:
        say("nothing to restate: every attempt is priced by the list as it is")
    if done.left:
        warn(f"{counted(done.left, 'attempt')} left alone: adopted from tables that don't say how many images it gave")


def _say_plan(planned: "Plan", settings: "Settings", approval: str) -> None:
    for catalogue in planned.catalogues:
        parts = [
            f"{count:,} {standing.value.replace('_', ' ')}" for standing, count in catalogue.items.items() if count
        ]
        parts += [f"{catalogue.removed:,} removed"] * (catalogue.removed > 0)
        parts += [f"{catalogue.refused.total():,} rejected"] * (catalogue.refused.total() > 0)
        say(f"{catalogue.name}: {', '.join(parts) or 'no items'}")
        for rule, count in catalogue.refused.most_common():
            say(f"  {count:>8,}  {rule}")
    sizes = ", ".join(f"{count:,} of {resolution}" for resolution, count in planned.by_resolution.items())
    say(f"{counted(planned.to_make, 'image')} to make{f' ({sizes})' if sizes else ''}")
    if planned.to_make:
        _say_forecast(planned)
        say(f"plan {planned.hash}" + {"given": ", approved", "needed": ", waits for approval"}.get(approval, ""))
    duplicates = planned.counts["duplicates"]
    if duplicates:
        warn(f"{duplicates:,} of them already have an image under another catalogue's name: was a file renamed?")
    if not planned.fits:
        warn(f"today's cap has room for {dollars(planned.room_micros)}: what doesn't fit is deferred")
    if approval == "needed":
        above = f"above ${settings.approve_above_usd} a run waits for your approval"
        warn(f"{above}: nanobanana approve {planned.hash}")


def _say_forecast(planned: "Plan") -> None:
    cost = [dollars(round(micros)) for micros in planned.cost]
    time = [clock(seconds) for seconds in planned.duration_s]
    for name, cells in (("", ("P10", "P50", "P90")), ("cost", cost), ("duration", time)):
        say(f"  {name:<10}" + "".join(f"{cell:>12}" for cell in cells))
    say(f"  based on {planned.based_on}" + (" (simulated: no money is spent)" if planned.simulated else ""))


def _say_reconciliation(found: "Reconciliation") -> None:
    for status, count in found.counts.most_common():
        say(f"{count:>8,}  {status.value.replace('_', ' ')}")
    if found.unreadable:
        say(f"{found.unreadable:>8,}  could not be read")
    difference = found.difference_micros
    say(
        f"invoice {dollars(found.invoice_micros)}, ledger {dollars(found.ledger_micros)}, "
        f"price list {dollars(found.list_micros)}: "
        f"the invoice has {dollars(abs(difference))} {'less' if difference < 0 else 'more'}"
    )
    if found.again.tasks:
        tasks, names = counted(found.again.tasks, "task"), _named(found.again.invoices)
        say(f"charged again: {tasks}, {dollars(found.again.micros)}, first on {names}")
    if found.listed.tasks:
        tasks, names = counted(found.listed.tasks, "task"), _named(found.listed.invoices)
        say(
            f"listed elsewhere too: {tasks}, {dollars(found.listed.micros)}, on {names}: one charge where the files "
            "overlap, paid twice if each file is paid"
        )
    if found.corrected:
        say(f"{counted(found.corrected, 'attempt')} corrected to what the invoice says")
    for row in found.examples[:_DIFFERENCES_SHOWN]:
        where = f"line {row['source_line']}" if row["source_line"] is not None else "not on the invoice"
        task, more = row.get("task_id") or "no task", row.get("note") or ""
        say(f"  {where}: {task}, {row['status'].replace('_', ' ')} by ${row['difference_usd']}; {more}")
    if not found.ok:
        warn("not everything matches: nanobanana query \"FROM reconciliation WHERE status <> 'matched'\"")


def _named(invoices: "Iterable[str]") -> str:
    first, *others = sorted(invoices)
    return f"{first} and {len(others)} more" if others else first


COMMANDS: tuple[click.Command, ...] = (plan, approve, reconcile, reprice)
