"""The table `cost_daily`, and the totals that status, the command line and Dagster's metadata show.

Every figure is a sum over attempts, taken from the ledger in one snapshot; nothing is counted up along the way, so what
happens later (a late answer, a correction) restates the figures and can't be counted twice. The SQL is in `figures`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

from nanobanana_pipeline.generation.publishing import STATUS_OF, Row, replace_rows, usd
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import budget
from nanobanana_pipeline.reporting import figures
from nanobanana_pipeline.reporting.figures import WASTE, Outcome, Scope
from nanobanana_pipeline.reporting.sparkline import bars_markdown

_DAYS_SHOWN: Final = 30
_ROWS_SHOWN: Final = 12


@dataclass(slots=True)
class Totals:
    """Sums over some rows of `cost_daily`; money in micro-dollars."""

    images: int = 0
    tokens: int = 0
    cost_micros: int = 0
    at_risk_micros: int = 0

    def add(self, row: Any) -> None:
        """Count a row in."""
        self.images += row["images"]
        self.tokens += row["tokens"]
        self.cost_micros += row["cost_micros"]
        self.at_risk_micros += row["at_risk_micros"]

    @property
    def cost_per_image_micros(self) -> int | None:
        """Spent money by image, rounded half up; None without images."""
        return per_image(self.cost_micros, self.images)


@dataclass(slots=True)
class CostReport:
    """What `cost_daily` holds now: its rows, their sums in all, by day, and by catalogue, campaign and resolution."""

    simulated: bool
    rows: int = 0
    totals: Totals = field(default_factory=Totals)
    by_day: dict[str, Totals] = field(default_factory=dict)
    by_group: dict[tuple[str, str | None, str], Totals] = field(default_factory=dict)

    @property
    def days(self) -> int:
        """Days with an attempt."""
        return len(self.by_day)

    @property
    def markdown(self) -> str:
        """The report in a few kilobytes, for Dagster's metadata: spending by day as bars, and the costliest groups."""
        totals = self.totals
        lines = [
            *(["**Simulated: no money was spent.**", ""] if self.simulated else []),
            f"**{shown(totals.cost_micros)}** for {totals.images:,} images"
            + (f", {shown(totals.at_risk_micros)} at risk" if totals.at_risk_micros else ""),
            "",
            *bars_markdown({day: by_day.cost_micros for day, by_day in list(self.by_day.items())[-_DAYS_SHOWN:]}),
            "",
            "| catalogue | campaign | resolution | images | cost | at risk | an image |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        ]
        groups = sorted(self.by_group.items(), key=lambda entry: -entry[1].cost_micros)
        for (catalogue, campaign, resolution), sums in groups[:_ROWS_SHOWN]:
            each = sums.cost_per_image_micros
            lines.append(
                f"| {cell(catalogue)} | {cell(campaign or '-')} | {cell(resolution)} | {sums.images:,} "
                f"| {shown(sums.cost_micros)} | {shown(sums.at_risk_micros)} | {'-' if each is None else shown(each)} |"
            )
        if len(groups) > _ROWS_SHOWN:
            lines += ["", f"and {len(groups) - _ROWS_SHOWN} more: see the cost report, or the table `cost_daily`"]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CostSummary:
    """Where some work stands: its items by status (the words of `results`), and its money in micro-dollars.

    `submitted` are the attempts that the provider accepted; `wasted_micros` was spent on attempts whose images are no
    longer in use or never were; `failures` counts failed items by kind. `simulated` is None while nothing was ever run.
    """

    simulated: bool | None
    items: dict[str, int]
    failures: dict[str, int]
    attempts: int
    submitted: int
    images: int
    images_in_use: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_micros: int
    at_risk_micros: int
    reserved_micros: int
    wasted_micros: int

    @property
    def cost_per_image_micros(self) -> int | None:
        """All that was spent, failures and waste too, by image in use; None without any."""
        return per_image(self.cost_micros, self.images_in_use)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: money as strings of dollars with six places, since a float would not be exact."""
        each = self.cost_per_image_micros
        return {
            "simulated": self.simulated,
            "items": self.items,
            "failures": self.failures,
            "attempts": self.attempts,
            "submitted": self.submitted,
            "images": self.images,
            "images_in_use": self.images_in_use,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cost_usd": budget.usd(self.cost_micros),
            "at_risk_usd": budget.usd(self.at_risk_micros),
            "reserved_usd": budget.usd(self.reserved_micros),
            "wasted_usd": budget.usd(self.wasted_micros),
            "cost_per_image_usd": None if each is None else budget.usd(each),
        }


def publish_cost_daily(workspace: Workspace) -> CostReport:
    """Write `cost_daily` anew as the ledger has it now.

    A row is a UTC day, catalogue, campaign, model and resolution. An attempt counts to the day that its budget was
    reserved on, for good. In a row, `items` are those with an attempt; `succeeded` those of them that an attempt of the
    row gave an image; `failed` those that got none, have no attempt open, and were not merely put off (pushed back by a
    rate limit, say). What is left is open, unknown or put off. `images`, `tokens`, `cost_usd` and `at_risk_usd` are
    sums over the row's attempts, so their totals are those of `attempts` and `results` to the micro-dollar; `items` may
    not be added up over rows, as an item can have attempts on several days.
    """
    stamp = workspace.ledger.stamp
    simulated = workspace.settings.simulated if stamp is None else stamp.mode == "simulated"
    report = CostReport(simulated)

    def make() -> Iterator[Row]:
        nonlocal report
        # Anew: another writer may have been first, and then all of it is read again.
        report = CostReport(simulated)
        with workspace.ledger.database.read() as connection:
            for row in figures.daily(connection):
                report.rows += 1
                report.totals.add(row)
                report.by_day.setdefault(row["day"], Totals()).add(row)
                group = (row["catalogue"], row["campaign"], row["resolution"])
                report.by_group.setdefault(group, Totals()).add(row)
                yield _cost_row(row)

    replace_rows(workspace, "cost_daily", {}, make)
    return report


def summary(
    workspace: Workspace, *, catalogue: str | None = None, shard: str | None = None, run_scope: str | None = None
) -> CostSummary:
    """Where all the work stands, or that of a catalogue, a shard or a run (`run_scope`), in one snapshot."""
    scope = Scope(catalogue, shard, run_scope)
    stamp = workspace.ledger.stamp
    with workspace.ledger.database.read() as connection:
        items: Counter[str] = Counter()
        for state, count in figures.items_by_state(connection, scope).items():
            items[STATUS_OF[state]] += count
        spent: Counter[str] = Counter()
        in_use = 0
        for row in figures.spending(connection, scope):
            spent[row["outcome"]] += row["cost_micros"]
            in_use += row["images"] if row["outcome"] == Outcome.IN_USE else 0
        totals = figures.totals(connection, scope)
        failures = figures.failures(connection, scope)
    return CostSummary(
        simulated=None if stamp is None else stamp.mode == "simulated",
        items=dict(items),
        failures=failures,
        images_in_use=in_use,
        wasted_micros=sum(spent[outcome] for outcome in WASTE),
        **{name: totals[name] for name in _TOTALS},
    )


def per_image(cost_micros: int, images: int) -> int | None:
    """Micro-dollars an image, rounded half up; None without images."""
    return (2 * cost_micros + images) // (2 * images) if images else None


def shown(micros: int) -> str:
    """Money for people: dollars and cents, and less than a dollar to a hundredth of a cent."""
    dollars = Decimal(micros).scaleb(-6)
    places = Decimal("0.01") if abs(dollars) >= 1 or dollars == 0 else Decimal("0.0001")
    return f"${dollars.quantize(places, ROUND_HALF_UP):,}"


def cell(text: str) -> str:
    """Text for a cell of a markdown table: nothing in it can begin markup or end the cell."""
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in " ".join(text.split()))[:200]


_MARKUP: Final = frozenset("\\`*_{}[]()<>#+!|&~$")
_TOTALS: Final = (
    "attempts",
    "submitted",
    "images",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cost_micros",
    "at_risk_micros",
    "reserved_micros",
)


def _cost_row(row: Any) -> Row:
    return {
        **{name: row[name] for name in ("catalogue", "campaign", "model", "resolution")},
        **{name: row[name] for name in ("items", "succeeded", "failed", "images", "tokens")},
        "day": date.fromisoformat(row["day"]),
        "cost_usd": usd(row["cost_micros"]),
        "at_risk_usd": usd(row["at_risk_micros"]),
        "cost_per_image_usd": usd(per_image(row["cost_micros"], row["images"])),
    }
