"""`run` and `demo`: the whole pipeline, headless, through Dagster."""

import signal
from typing import TYPE_CHECKING

import click

from nanobanana_pipeline.cli import environment, reports
from nanobanana_pipeline.cli.amounts import Dollars
from nanobanana_pipeline.cli.console import NEEDS_ATTENTION, counted, note, say, say_json, warn
from nanobanana_pipeline.cli.progress import ProgressDisplay
from nanobanana_pipeline.memory import collector_paused, share_allocator

if TYPE_CHECKING:
    from decimal import Decimal

    from nanobanana_pipeline.orchestration.order import Order
    from nanobanana_pipeline.orchestration.outcome import Outcome
    from nanobanana_pipeline.settings import Settings


@click.command(short_help="Make every image that is missing (costs money).")
@click.option("--catalogue", metavar="NAME", help="Only this catalogue.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Begin N items at most, in all: a pilot.")
@click.option("--max-cost", type=Dollars(least="0.000001"), metavar="USD", help="Spend this much at most in this run.")
@click.option(
    "--regenerate",
    metavar="ITEM",
    multiple=True,
    help="Make only this item anew (item_id or prompt_id, repeatable), and pay for it again.",
)
@click.option("--retry-failed", is_flag=True, help="Try failed items again, and pay for them again.")
@click.option(
    "--resubmit-unknown", is_flag=True, help="Submit items of unknown outcome again; they may be billed twice."
)
@click.option("--allow-duplicates", is_flag=True, help="Pay again for requests that have images under another name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end, and nothing else.")
def run(
    catalogue: str | None,
    limit: int | None,
    max_cost: "Decimal | None",
    regenerate: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - click gives flags by name
    **options: bool,
) -> int:
    """Make every image that is missing, and bring every table up to date.

    What is done costs nothing again; what an interrupted run left in the air is finished first. Ctrl-C stops
    gracefully.

    \b
    Examples:
      export NANOBANANA_API_KEY=…
      nanobanana run                          everything in data/catalogue
      nanobanana run --catalogue spring --limit 20
      nanobanana run --regenerate p17         another picture of this prompt, and nothing else
      NANOBANANA_BUDGET_USD=25 nanobanana run

    \b
    Exit codes:
      0  every item has its image (or waits for a larger --limit)
      1  could not run
      3  some item is failed, unknown, deferred or in flight elsewhere
      130, 143  stopped
    """
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    if settings.simulated:
        raise UserError(
            "there is no API key: set NANOBANANA_API_KEY to run for real, or see the pipeline at work without one "
            "by `nanobanana demo`"
        )
    from nanobanana_pipeline.orchestration.order import Order

    order = Order(
        catalogue=catalogue,
        limit=limit,
        max_cost_usd=max_cost,
        regenerate=bool(regenerate),
        items=regenerate,
        **options,
    )
    outcome = _work(settings, order, quiet=as_json)
    if as_json:
        say_json(reports.as_json(outcome, exit_code(outcome)))
    else:
        _say(outcome)
    return exit_code(outcome)


@click.command(short_help="Run the whole pipeline on a sample: no key, no cost.")
def demo() -> int:
    """Run the whole pipeline on the sample catalogue, against a simulated provider.

    Needs no key and costs nothing, whatever the environment says. Everything is made in data/demo, apart from real
    work. Run it again, and nothing is made or paid twice.
    """
    from nanobanana_pipeline.orchestration.order import Order

    settings = environment.demo_settings()
    note("a simulated provider stands in for the real one: the pictures are drawn here, and no money is spent")
    outcome = _work(settings, Order(catalogue=environment.demo_catalogue(settings)))
    _say(outcome)
    if outcome.signal_number is None:
        say(reports.WHAT_NEXT)
    return exit_code(outcome)


def _say(outcome: "Outcome") -> None:
    # After a hang-up the terminal is gone.
    if outcome.signal_number != signal.SIGHUP:
        reports.say_outcome(outcome)


def exit_code(outcome: "Outcome") -> int:
    """What the command ends with."""
    if outcome.signal_number is not None:
        return 128 + outcome.signal_number
    if outcome.problems:
        return 1
    return NEEDS_ATTENTION if outcome.needs_attention else 0


def _work(settings: "Settings", order: "Order", *, quiet: bool = False) -> "Outcome":
    share_allocator()
    with collector_paused():
        from nanobanana_pipeline.orchestration.at_rest import outcome_at_rest

    outcome = outcome_at_rest(settings, order)
    if outcome is not None:
        return _told(outcome)
    with collector_paused():
        from nanobanana_pipeline.orchestration.headless import run_pipeline

    home = environment.set_dagster_home(settings)
    logs = environment.local_output(settings) / "logs"
    with ProgressDisplay(quiet=quiet) as display:
        return _told(run_pipeline(settings, order, display, home=home, logs=logs))


def _told(outcome: "Outcome") -> "Outcome":
    """Say what went wrong, whatever form the rest is asked for in."""
    if outcome.rejected_rows:
        were = "was" if outcome.rejected_rows == 1 else "were"
        rows = counted(outcome.rejected_rows, "row")
        warn(f"{rows} of the catalogue {were} rejected: nanobanana query 'FROM rejected_prompts'")
    for problem in outcome.problems:
        warn(problem)
    return outcome


COMMANDS: tuple[click.Command, ...] = (demo, run)
