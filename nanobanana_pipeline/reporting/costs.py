"""The table `cost_daily`, and the totals that status, the command line and Dagster's metadata show.

Every figure is a sum over attempts, taken from the ledger in one snapshot; nothing is counted up along the way, so what
happens later (a late answer, a correction) restates the figures and can't be counted twice. The SQL is in `figures`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final, TypeVar

from nanobanana_pipeline.generation.publishing import STATUS_OF, Row, replace_rows, usd
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import budget
from nanobanana_pipeline.reporting import figures, glance
from nanobanana_pipeline.reporting.figures import WASTE, Outcome, Scope
from nanobanana_pipeline.reporting.glance import bar, cell

_Group = TypeVar("_Group")


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

    def add(self, row: Any) -> None:
        """Count a row in."""
        self.rows += 1
        self.totals.add(row)
        self.by_day.setdefault(row["day"], Totals()).add(row)
        group = (row["catalogue"], row["campaign"], row["resolution"])
        self.by_group.setdefault(group, Totals()).add(row)

    @property
    def days(self) -> int:
        """Days with an attempt."""
        return len(self.by_day)

    @property
    def chart(self) -> str:
        """Spending by day as bars, the latest first, in markdown that Dagster shows where it stands."""
        highest = max((totals.cost_micros for totals in self.by_day.values()), default=0)
        days = reversed(self.by_day.items())
        rows = [[day, shown(sums.cost_micros), bar(sums.cost_micros, highest)] for day, sums in days]
        return glance.table(("day", "cost", ""), rows, names=1, title=_title(self.simulated), rest=" days")

    @property
    def table(self) -> str:
        """The costliest groups, in markdown that Dagster shows where it stands."""
        rows = [
            [cell(catalogue), cell(campaign or "-"), resolution, *_figures(sums)]
            for (catalogue, campaign, resolution), sums in _costliest(self.by_group)
        ]
        header = ("catalogue", "campaign", "resolution", *_FIGURES)
        return glance.table(header, rows, names=3, title=_title(self.simulated), rest=" in `cost_daily`")


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
    report = CostReport(_simulated(workspace))

    def make() -> Iterator[Row]:
        nonlocal report
        # Anew: another writer may have been first, and then all of it is read again.
        report = CostReport(report.simulated)
        with workspace.ledger.database.read() as connection:
            for row in figures.daily(connection):
                report.add(row)
                yield _cost_row(row)

    replace_rows(workspace, "cost_daily", {}, make)
    return report


def daily_costs(workspace: Workspace) -> CostReport:
    """What `cost_daily` would hold, were it written now."""
    report = CostReport(_simulated(workspace))
    with workspace.ledger.database.read() as connection:
        for row in figures.daily(connection):
            report.add(row)
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


def shard_tables(workspace: Workspace, shard: str) -> tuple[str, str]:
    """A shard's money by campaign and resolution, and by what it bought, with bars; as short as `CostReport.table`."""
    by_group: dict[tuple[str | None, str], Totals] = {}
    by_outcome: dict[str, Totals] = {}
    with workspace.ledger.database.read() as connection:
        for row in figures.spending(connection, Scope(shard=shard)):
            by_group.setdefault((row["campaign"], row["resolution"]), Totals()).add(row)
            by_outcome.setdefault(row["outcome"], Totals()).add(row)
    groups = [[cell(campaign or "-"), size, *_figures(sums)] for (campaign, size), sums in _costliest(by_group)]
    held = {outcome: sums.cost_micros + sums.at_risk_micros for outcome, sums in by_outcome.items()}
    highest = max(held.values(), default=0)
    bought = [
        [outcome.replace("_", " "), shown(micros), bar(micros, highest)]
        for outcome, micros in sorted(held.items(), key=lambda entry: -entry[1])
        if micros
    ]
    return (
        glance.table(("campaign", "resolution", *_FIGURES), groups, names=2, rest=" in `attempts`"),
        glance.table(("what it bought", "cost", ""), bought, names=1),
    )


def per_image(cost_micros: int, images: int) -> int | None:
    """Micro-dollars an image, rounded half up; None without images."""
    return (2 * cost_micros + images) // (2 * images) if images else None


def shown(micros: int) -> str:
    """Money for people: dollars and cents, and less than a dollar to a hundredth of a cent."""
    dollars = Decimal(micros).scaleb(-6)
    places = Decimal("0.01") if abs(dollars) >= 1 or dollars == 0 else Decimal("0.0001")
    return f"${dollars.quantize(places, ROUND_HALF_UP):,}"


_FIGURES: Final = ("images", "cost", "at risk", "an image")


def _figures(sums: Totals) -> list[str]:
    each = sums.cost_per_image_micros
    money = [shown(sums.cost_micros), shown(sums.at_risk_micros), "-" if each is None else shown(each)]
    return [f"{sums.images:,}", *money]


def _costliest(groups: dict[_Group, Totals]) -> list[tuple[_Group, Totals]]:
    return sorted(groups.items(), key=lambda entry: -entry[1].cost_micros)


def _simulated(workspace: Workspace) -> bool:
    stamp = workspace.ledger.stamp
    return workspace.settings.simulated if stamp is None else stamp.mode == "simulated"


def _title(simulated: bool) -> str:  # noqa: FBT001 - one word of the title hangs on it
    return "Simulated: no money was spent." if simulated else ""


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
