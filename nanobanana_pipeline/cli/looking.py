"""`status`, `query` and `explain`: looking at what is there; nothing is changed or spent."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nanobanana_pipeline.cli.console import clock, counted, dollars, say, say_json, usd_text

if TYPE_CHECKING:
    from nanobanana_pipeline.generation.standing import ShardProgress, Standing
    from nanobanana_pipeline.ledger.states import Holding
    from nanobanana_pipeline.settings import Settings

_WATCH_EVERY_S = 2.0


@click.command(short_help="Where the work and the money stand.")
@click.option("--watch", is_flag=True, help="Again every few seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(watch: bool, as_json: bool) -> None:  # noqa: FBT001 - click gives flags by name
    """Items by state, money against the caps, and who is at work now: how far, how fast, how long yet, at what cost."""
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    while True:
        _show_status(settings, as_json=as_json)
        if not watch:
            return
        time.sleep(_WATCH_EVERY_S)
        click.clear()


def _show_status(settings: "Settings", *, as_json: bool) -> None:
    if not has_ledger(settings):
        if as_json:
            say_json({"mode": None, "output": settings.workspace, "items": {}, "catalogues": [], "workers": []})
        else:
            say(f"nothing was done in {settings.workspace} yet: nanobanana {'demo' if settings.simulated else 'run'}")
        return
    from nanobanana_pipeline.generation.standing import standing
    from nanobanana_pipeline.ledger.ledger import Ledger

    with Ledger(settings.ledger) as ledger:
        now = standing(ledger, settings)
    if as_json:
        say_json(_as_json(now, settings))
    else:
        _say_standing(now, settings)


@click.command(short_help="SQL over the tables (DuckDB).")
@click.argument("sql")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="json is one array of objects; parquet is binary, for a file.",
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most N rows.")
def query(sql: str, fmt: Literal["table", "csv", "json", "parquet"], limit: int | None) -> None:
    """Answer an SQL query over the tables.

    These are prompts, rejected_prompts, results, images, attempts, cost_daily and reconciliation; docs/tables.md says
    what is in them. It can only read.

    \b
    Examples:
      nanobanana query "SELECT status, count(*), sum(cost_usd) FROM results GROUP BY 1"
      nanobanana query "SELECT * FROM cost_daily" --format csv > costs.csv
      nanobanana query "SELECT path FROM images" --format parquet > images.parquet
    """
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.settings import load_settings
    from nanobanana_pipeline.storage.query import run_query

    if fmt == "parquet" and sys.stdout.isatty():
        raise UserError(
            "parquet is binary: send it to a file, as in nanobanana query … --format parquet > rows.parquet"
        )
    answer = run_query(load_settings().workspace, sql, fmt, limit)
    click.echo(answer, nl=isinstance(answer, str) and not answer.endswith("\n"))


@click.command(short_help="What happened: to an item, in a run, on a day.")
@click.argument("what", metavar="ITEM|RUN|DAY")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def explain(what: str, as_json: bool) -> None:  # noqa: FBT001 - click gives flags by name
    """Tell what happened, in sentences: every attempt, wait, retry, price and decision, from the ledger.

    ITEM is catalogue/prompt_id, or catalogue/prompt_id#sample, or the beginning of an item's or an attempt's id, or a
    task's id; RUN the beginning of a run's id; DAY a UTC day.

    \b
    Examples:
      nanobanana explain spring/p-0042
      nanobanana explain spring/p-0042#2 --json
      nanobanana explain 3f2a91c7
      nanobanana explain 2026-11-22
    """
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.ledger.ledger import Ledger
    from nanobanana_pipeline.reporting.explain import explain as story_of
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    if not has_ledger(settings):
        raise UserError(f"nothing was done in {settings.workspace} yet, so there is nothing to explain")
    with Ledger(settings.ledger) as ledger:
        story = story_of(ledger, what)
    if as_json:
        say_json(story.as_dict())
    else:
        for line in story.lines:
            say(line)


def has_ledger(settings: "Settings") -> bool:
    """Whether there is a ledger to look at; looking must not make one."""
    from sqlalchemy.engine import make_url

    url = make_url(settings.ledger)
    return url.get_backend_name() != "sqlite" or (url.database is not None and Path(url.database).exists())


def require_ledger(settings: "Settings") -> None:
    """Raise `UserError` where nothing was done yet, so that asking about it makes nothing."""
    if not has_ledger(settings):
        from nanobanana_pipeline.errors import UserError

        first = "demo" if settings.simulated else "run"
        raise UserError(f"nothing was done in {settings.workspace} yet: nanobanana {first}, or set NANOBANANA_OUTPUT")


def _say_standing(now: "Standing", settings: "Settings") -> None:
    mode = "nothing run yet" if now.stamp is None else f"{now.stamp.mode}, {now.stamp.origin}"
    say(f"{settings.workspace} ({mode})")
    for catalogue in now.catalogues:
        counts = ", ".join(
            f"{count:,} {status.replace('_', ' ')}" for status, count in catalogue.items.items() if count
        )
        shards = counted(catalogue.shards, "shard")
        say(f"  {catalogue.name}: {counts or 'no items'} ({shards}, {catalogue.shards_with_work:,} with work left)")
    say(f"  in all: {_shown_money(now.held)}")
    for cap in now.caps:
        of_cap = f" of {dollars(cap.cap)}" if cap.cap is not None else ""
        say(f"  {cap.scope}: {_shown_money(cap.held)}{of_cap}")
    if now.undecided_micros:
        say(f"  at risk until you decide: {dollars(now.undecided_micros)}; see nanobanana unknown list")
    if given_up := now.held.at_risk - now.undecided_micros:
        say(f"  at risk until the invoice tells, for what was given up: {dollars(given_up)}; see nanobanana reconcile")
    for worker in now.workers:
        state = f"has died at work on {worker.shard}; the next run takes over"
        if not worker.dead:
            state = f"at work on {worker.shard}: {_shown_progress(worker.progress)}"
        say(f"  worker {worker.host}/{worker.pid} (run {worker.run_id[:8]}) {state}")


def _shown_money(held: "Holding") -> str:
    return f"{dollars(held.spent)} spent, {dollars(held.reserved)} reserved, {dollars(held.at_risk)} at risk"


def _shown_progress(progress: "ShardProgress") -> str:
    parts = [
        f"{progress.done:,} of {progress.items:,} items",
        f"{progress.in_flight:,} in flight",
        f"{progress.a_minute:,.0f} a minute",
        *([] if progress.left_s is None else [f"{clock(progress.left_s)} left"]),
        f"{dollars(progress.spent_micros)} spent",
    ]
    return ", ".join(parts)


def _as_json(now: "Standing", settings: "Settings") -> dict[str, Any]:
    return {
        "mode": now.stamp.mode if now.stamp else None,
        "origin": now.stamp.origin if now.stamp else None,
        "output": settings.workspace,
        "items": now.items,
        "cost_usd": usd_text(now.held.spent),
        "reserved_usd": usd_text(now.held.reserved),
        "at_risk_usd": usd_text(now.held.at_risk),
        "undecided_usd": usd_text(now.undecided_micros),
        "catalogues": [
            {
                "catalogue": catalogue.name,
                "shards": catalogue.shards,
                "shards_with_work": catalogue.shards_with_work,
                "prompts": catalogue.prompts,
                "items": dict(catalogue.items),
            }
            for catalogue in now.catalogues
        ],
        "caps": [
            {
                "scope": cap.scope,
                "cap_usd": None if cap.cap is None else usd_text(cap.cap),
                "spent_usd": usd_text(cap.held.spent),
                "reserved_usd": usd_text(cap.held.reserved),
                "at_risk_usd": usd_text(cap.held.at_risk),
            }
            for cap in now.caps
        ],
        "workers": [
            {
                "shard": worker.shard,
                "run_id": worker.run_id,
                "host": worker.host,
                "pid": worker.pid,
                "dead": worker.dead,
                "items": worker.progress.items,
                "done": worker.progress.done,
                "in_flight": worker.progress.in_flight,
                "items_per_minute": round(worker.progress.a_minute, 1),
                "left_s": None if worker.progress.left_s is None else round(worker.progress.left_s),
                "spent_usd": usd_text(worker.progress.spent_micros),
            }
            for worker in now.workers
        ],
    }


COMMANDS: tuple[click.Command, ...] = (status, query, explain)
