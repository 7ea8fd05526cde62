"""What a run has done, in words and as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanobanana_pipeline.cli.console import clock, dollars, say, usd_text

if TYPE_CHECKING:
    from nanobanana_pipeline.orchestration.outcome import Outcome
    from nanobanana_pipeline.reporting.costs import CostSummary

WHAT_NEXT: Final = """
What to try next:
  nanobanana query "SELECT status, count(*) AS items, sum(cost_usd) AS usd FROM results GROUP BY 1"
  nanobanana dev                        Dagster's pages: the runs, the tables, the pictures
  NANOBANANA_API_KEY=… nanobanana run   the same for real, into data/output; nothing simulated counts as done"""

_WHAT_TO_DO: Final = {
    "failed": 'why: nanobanana query "FROM results SELECT prompt_id, error_kind, error_message '
    "WHERE status = 'failed'\"; again: nanobanana run --retry-failed",
    "unknown": "sent, and no answer came: nanobanana unknown list",
    "deferred": "wait for room under the cap, or for the provider: nanobanana run, later",
    "in_flight": "with the provider: nanobanana run takes them in",
    "pending": "not begun: nanobanana run",
}


def say_outcome(outcome: "Outcome") -> None:
    """A table of what was done, how things stand, and where everything is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    standing = outcome.standing
    if standing is None:
        return
    say(_headline(outcome))
    table = Table(box=SIMPLE_HEAD)
    for column, justify in (("", "left"), ("this run", "right"), ("in all", "right")):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    for row in _figures(outcome, standing):
        table.add_row(*row)
    Console().print(table)
    for status, what in _WHAT_TO_DO.items():
        count = standing.items.get(status, 0)
        if count:
            say(f"{count:,} {status.replace('_', ' ')}: {what}")
    for name, place in places(outcome).items():
        say(f"{name:<8} {place}")


def as_json(outcome: "Outcome", exit_code: int) -> dict[str, Any]:
    """The outcome for scripts; money as strings of dollars with six places."""
    tally, standing = outcome.tally, outcome.standing
    return {
        "mode": outcome.stamp.mode,
        "origin": outcome.stamp.origin,
        "exit_code": exit_code,
        "stopped": outcome.signal_number is not None,
        "items": statuses(standing),
        "rejected_rows": outcome.rejected_rows,
        "submitted": tally.submitted,
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "failures": tally.failures_by_kind,
        "images": tally.images,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        "cost_usd": usd_text(tally.cost_micros),
        "at_risk_usd": usd_text(standing.at_risk_micros if standing else 0),
        "total": standing.as_dict() if standing else None,
        "shards": outcome.shards,
        "run_ids": outcome.run_ids,
        "problems": outcome.problems,
        "output": outcome.output,
        "paths": places(outcome),
        "duration_s": round(outcome.duration_s, 3),
    }


def statuses(standing: "CostSummary | None") -> dict[str, int]:
    """Items by status, each status of the table `results` named."""
    from nanobanana_pipeline.generation.publishing import STATUS_OF

    items = standing.items if standing else {}
    return {status: items.get(status, 0) for status in dict.fromkeys(STATUS_OF.values())}


def places(outcome: "Outcome") -> dict[str, str]:
    """Where what was made is."""
    base = outcome.output.rstrip("/") if "://" in outcome.output else str(Path(outcome.output).absolute())
    made = {"images": f"{base}/images", "tables": f"{base}/tables", "pages": f"{base}/site"}
    return made if outcome.log is None else made | {"log": outcome.log}


def _headline(outcome: "Outcome") -> str:
    mode = "simulated, no money was spent" if outcome.stamp.mode == "simulated" else f"live, at {outcome.stamp.origin}"
    ending = "stopped after" if outcome.signal_number is not None else "done in"
    if outcome.signal_number is None and not outcome.tally.submitted and not outcome.tally.succeeded:
        return f"nothing to do: nothing was submitted or paid ({mode})"
    return f"{ending} {clock(outcome.duration_s)} ({mode})"


def _figures(outcome: "Outcome", standing: "CostSummary") -> list[tuple[str, str, str]]:
    tally = outcome.tally
    rows = [
        ("submitted", f"{tally.submitted:,}", f"{standing.submitted:,}"),
        ("images", f"{tally.images:,}", f"{standing.images:,}"),
        *((f"items {status.replace('_', ' ')}", "", f"{count:,}") for status, count in standing.items.items() if count),
        ("prompt tokens", f"{tally.prompt_tokens:,}", f"{standing.prompt_tokens:,}"),
        ("completion tokens", f"{tally.completion_tokens:,}", f"{standing.completion_tokens:,}"),
        ("cost", dollars(tally.cost_micros), dollars(standing.cost_micros)),
    ]
    if standing.at_risk_micros:
        rows.append(("at risk", "", dollars(standing.at_risk_micros)))
    if outcome.rejected_rows:
        rows.append(("rejected rows", "", f"{outcome.rejected_rows:,}"))
    return rows
