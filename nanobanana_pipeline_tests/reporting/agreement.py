"""Every place that shows money, held against the others and against the provider's billing book, to the micro-dollar.

    python -m nanobanana_pipeline_tests.reporting.agreement prompts.parquet

works a catalogue of your own off against a simulator with 5 % faults, edits some rows, lets late answers come, and
gives a messy invoice the last word; after each step it prints what every place says. The test does the same with a
catalogue that it makes up.
"""

import csv
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import orjson
import pyarrow.parquet as pq

from nanobanana_pipeline.reporting.costs import publish_cost_daily, summary
from nanobanana_pipeline.reporting.pages import Site, write_site
from nanobanana_pipeline.reporting.reconcile import Reconciliation, Status, reconcile
from nanobanana_pipeline_tests.e2e.command import Place
from nanobanana_pipeline_tests.reporting.conftest import World

Row = dict[str, Any]

FAULTS: Final[tuple[Row, ...]] = (
    # About one prompt in twenty meets one of these; the last lasts until the faults are taken away.
    {"fault": "answer_lost", "rate": 0.003},
    {"fault": "rate_limited_429", "rate": 0.005, "retry_after": 0},
    {"fault": "unavailable_503_html", "rate": 0.004},
    {"fault": "refused_400_moderation", "rate": 0.004},
    {"fault": "fast_path", "rate": 0.004},
    {"fault": "failed", "rate": 0.008},
    {"fault": "failed_billed", "rate": 0.003},
    {"fault": "text_only", "rate": 0.003},
    {"fault": "several_images", "rate": 0.003},
    {"fault": "usage_absent", "rate": 0.003},
    {"fault": "usage_cost", "rate": 0.003, "cost": "0.051234"},
    {"fault": "url_expired", "rate": 0.003},
    {"fault": "image_cut", "rate": 0.003, "times": 1},
    {"fault": "never_ends", "regex": r"(?i)\bclocks?\b"},
)
MAPPING: Final = """
time_format = "%d.%m.%Y %H:%M:%S"
time_zone = "Asia/Shanghai"
decimal = ","

[columns]
task_id = "Vorgang"
amount = "Betrag"
time = "Zeit"
"""


class Money(NamedTuple):
    """Micro-dollars."""

    spent: int
    at_risk: int


def places(world: World) -> dict[str, Money]:
    """What each place says, after all that is made for people to read was made anew."""
    workspace = world.workspace
    publish_cost_daily(workspace)
    site = write_site(workspace)
    whole = summary(workspace)
    return {
        **{f"table {name}": _of_table(world, name) for name in ("attempts", "results", "cost_daily")},
        "summary": Money(whole.cost_micros, whole.at_risk_micros),
        **_of_counters(world),
        "status --json": _of_status(world),
        **_of_cost_report(site),
        "gallery": _of_gallery(site),
    }


def _of_table(world: World, name: str) -> Money:
    rows = world.workspace.tables.read(name, ["cost_usd", "at_risk_usd"]).to_pylist()
    return Money(*(_micros(sum(row[column] or 0 for row in rows)) for column in ("cost_usd", "at_risk_usd")))


def _of_counters(world: World) -> dict[str, Money]:
    """The counters of the cap: every attempt counts to a day, to a catalogue and to a run."""
    sums: dict[str, Money] = {}
    for scope, held in world.workspace.ledger.counters().items():
        kind = f"budget by {scope.partition(':')[0]}"
        before = sums.get(kind, Money(0, 0))
        sums[kind] = Money(before.spent + held.spent, before.at_risk + held.at_risk)
    return sums


def _of_status(world: World) -> Money:
    place = Place.with_provider(
        world.folder,
        world.provider,
        OUTPUT=world.workspace.output,
        CATALOGUE=world.workspace.settings.catalogue,
        LEDGER_URL=world.workspace.ledger.url,
    )
    said = place.run("status", "--json").json
    return Money(_micros(said["cost_usd"]), _micros(said["at_risk_usd"]))


def _of_cost_report(site: Site) -> dict[str, Money]:
    """The numbers that the page adds up: in all, by what they bought, over time, and by label."""
    data = _page_data(site.cost_report, "costs")
    spending, moments, totals = data["spending"], data["moments"], data["totals"]
    cost, risk = (len(spending["dimensions"]) + spending["measures"].index(f"{name}_micros") for name in _MONEY)
    said = {
        "costs.html": Money(totals["cost_micros"], totals["at_risk_micros"]),
        "costs.html, where it went": _sum((row[cost], row[risk]) for row in spending["rows"]),
        "costs.html, over time": _sum((row[2], row[3]) for row in moments["rows"]),
    }
    for label in data["labels"]:
        values = ((value["cost_micros"], value["at_risk_micros"]) for value in label["values"])
        said[f"costs.html, by {label['name']}"] = _sum(values)
    return said


def _of_gallery(site: Site) -> Money:
    index = _page_data(site.gallery, "gallery")
    root = Path(site.gallery).parent
    cost = sum(entry[_WALL_COST] for path in index["walls"] for entry in _script(root / path))
    risk = sum(detail["at_risk_micros"] for path in index["details"] for detail in _script(root / path))
    return Money(cost, risk)


_MONEY: Final = ("cost", "at_risk")
_WALL_COST: Final = 13
"""Where the cost is in an entry of the gallery's wall."""


def _page_data(page: str, name: str) -> Any:
    """The data script that a page names."""
    text = Path(page).read_text()
    path = text.partition(f'src="data/{name}-')[2].partition('"')[0]
    return _script(Path(page).parent / "data" / f"{name}-{path}")


def _script(path: Path) -> Any:
    return orjson.loads(path.read_bytes().partition(b"]=")[2].removesuffix(b";\n"))


def _sum(pairs: Iterator[tuple[int, int]]) -> Money:
    listed = list(pairs)
    return Money(sum(spent for spent, _ in listed), sum(risk for _, risk in listed))


def _micros(usd: Any) -> int:
    return int(Decimal(usd).scaleb(6))


# --- what happens to a catalogue -------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """After a step: what it was, what each place says, what the provider billed, and what its invoice brings out."""

    step: str
    places: dict[str, Money]
    billed: int
    reconciliation: Reconciliation
    attempts: Counter[str]

    @property
    def money(self) -> Money:
        """What all places say; `AssertionError` naming those that differ from most."""
        (said, _), *_ = Counter(self.places.values()).most_common()
        differing = {name: money for name, money in self.places.items() if money != said}
        assert not differing, f"{self.step}: most say {said}, but {differing}"
        return said


def story(world: World, name: str, rows: Sequence[Row]) -> Iterator[Seen]:
    """Work `rows` off as the catalogue `name`, then edit, wait, and correct; what is seen after each step."""
    world.catalogue(name, rows)
    world.run()
    yield _look(world, "a run with 5 % faults")
    edited = [row | {"prompt": f"{row['prompt']}, at night"} if i % 40 == 0 else row for i, row in enumerate(rows)]
    world.catalogue(name, [row for i, row in enumerate(edited) if i % 100 != 99])
    world.run()
    yield _look(world, "rows edited and removed")
    world.provider.set_faults([])
    world.run()
    yield _look(world, "late answers")
    reconcile(world.workspace, _invoice(world), mapping=_mapping(world), correct=True)
    yield _look(world, "the invoice's word")


def _look(world: World, step: str) -> Seen:
    said = places(world)
    held = reconcile(world.workspace, _invoice(world), mapping=_mapping(world))
    states = world.workspace.tables.read("attempts", ["state"]).column("state").to_pylist()
    return Seen(step, said, _micros(world.billed()), held, Counter(states))


def _mapping(world: World) -> Path:
    path = world.folder / "mapping.toml"
    path.write_text(MAPPING)
    return path


def _invoice(world: World) -> Path:
    """What the provider has billed, as invoices come: a title, another language, zone and number style, repetitions."""
    random = Random(1)
    billed = [row for row in world.provider.book if row["event"] == "billed"]
    shanghai = ZoneInfo("Asia/Shanghai")
    lines: list[list[str]] = []
    for row in billed:
        at = datetime.fromisoformat(row["time"]).astimezone(shanghai)
        line = [
            f"{at:%d.%m.%Y %H:%M:%S}",
            row["task_id"],
            f"{Decimal(row['cost_usd']):.6f} $".replace(".", ","),
            "Bücher",
        ]
        lines += [line] * (2 if random.random() < 0.02 else 1)
    total = sum(Decimal(row["cost_usd"]) for row in billed)
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=";", lineterminator="\r\n")
    writer.writerows([["Rechnung November"], [], ["Zeit", "Vorgang", "Betrag", "Für"], *lines, []])
    writer.writerow(["", "Summe", f"{total:,.6f} $".translate(str.maketrans(",.", ".,")), ""])
    path = world.folder / "november.csv"
    path.write_bytes(text.getvalue().encode("utf-16"))
    return path


def known_faults(seen: Seen) -> int:
    """The money that only an invoice can tell of, by the table `reconciliation`."""
    return sum(_micros(row["difference_usd"]) for row in seen.reconciliation.rows)


# --- by hand ---------------------------------------------------------------------------------------------------------


def _say(seen: Seen) -> None:
    money, found = seen.money, seen.reconciliation
    counts = ", ".join(f"{found.counts[status]:,} {status.value}" for status in Status if found.counts[status])
    states = ", ".join(f"{count:,} {state}" for state, count in seen.attempts.most_common())
    lines = (
        f"{seen.step}: {sum(seen.attempts.values()):,} attempts ({states})",
        f"  {len(seen.places)} places say {_usd(money.spent)} spent, {_usd(money.at_risk)} at risk",
        f"  the provider has billed {_usd(seen.billed)}, {_usd(seen.billed - money.spent)} more",
        f"  its invoice: {counts}; {_usd(known_faults(seen))} of differences",
    )
    sys.stdout.write("\n".join(lines) + "\n")


def _usd(micros: int) -> str:
    return f"{Decimal(micros).scaleb(-6):,.6f}"


def main() -> int:
    """Tell what every place says after each step; an error at the first that differs."""
    if len(sys.argv) != 2:
        sys.stderr.write("give a Parquet file with a column `prompt`\n")
        return 1
    source = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, closing(World(Path(folder), faults=FAULTS, **_SETTINGS)) as world:
        for seen in story(world, source.stem, pq.read_table(source).to_pylist()):
            assert seen.billed - seen.money.spent == known_faults(seen), "the invoice explains the difference"
            _say(seen)
        sys.stdout.write(f"the places: {', '.join(places(world))}\n")
    return 0


_SETTINGS: Final[Row] = {"task_deadline_s": 10, "budget_usd": Decimal(1000)}


if __name__ == "__main__":
    sys.exit(main())
