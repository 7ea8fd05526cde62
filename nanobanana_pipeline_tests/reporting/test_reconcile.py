"""Invoices, clean and messy, held against a ledger that a real engine filled."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.reporting.costs import summary
from nanobanana_pipeline.reporting.invoice import Mapping, load_mapping, read_invoice
from nanobanana_pipeline.reporting.reconcile import Reconciliation, Status, reconcile
from nanobanana_pipeline_tests.reporting.conftest import World, rows

FAULTS = (
    {"contains": "number 1 ", "fault": "failed_billed"},
    {"contains": "number 2 ", "fault": "answer_lost"},
    {"contains": "number 3 ", "fault": "usage_cost", "cost": "0.05"},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A workspace with a billed failure, a lost answer and a price of the provider's own."""
    world = World(tmp_path_factory.mktemp("reconcile"), faults=FAULTS, max_attempts=1)
    world.catalogue("one", rows(8, prompt=[f"thing number {i} ." for i in range(8)]))
    world.run()
    yield world
    world.close()


def _billed(world: World) -> list[tuple[str, str, str]]:
    """Task, dollars and time of what the provider has billed."""
    return [(row["task_id"], row["cost_usd"], row["time"]) for row in world.provider.book if row["event"] == "billed"]


def _written(path: Path, header: list[str], lines: list[list[str]], **style: str) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=style.get("delimiter", ","))
    writer.writerows([header, *lines])
    path.write_bytes(text.getvalue().encode(style.get("encoding", "utf-8")))
    return path


def _counts(report: Reconciliation) -> dict[str, int]:
    return {status.value: count for status, count in report.counts.items() if count}


def test_the_provider_s_own_book_shows_what_the_ledger_could_not_know(made: World, tmp_path: Path) -> None:
    """A failure that was billed after all, and the image behind a lost answer: exactly what an invoice is read for."""
    lines = [[task, cost, time] for task, cost, time in _billed(made)]
    report = reconcile(made.workspace, _written(tmp_path / "may.csv", ["task_id", "cost", "created_at"], lines))

    assert _counts(report) == {"matched": 6, "amount_differs": 1, "only_invoice": 1}
    assert not report.ok
    by_status = {row["status"]: row for row in report.rows}
    assert "billed all the same" in by_status["amount_differs"]["note"]
    assert "1 submits of unknown outcome" in by_status["only_invoice"]["note"]
    assert report.invoice_micros == int(made.billed().scaleb(6))
    assert report.ledger_micros == summary(made.workspace).cost_micros
    assert report.difference_micros == sum(int(row["difference_usd"].scaleb(6)) for row in report.rows)
    table = made.workspace.tables.read("reconciliation", predicate={"invoice": "may.csv"})
    assert table.num_rows == 8


def test_the_price_list_is_the_third_witness(made: World, tmp_path: Path) -> None:
    """When invoice and provider agree and the list does not, a negotiated price is at work, and no error."""
    lines = [[task, cost] for task, cost, _ in _billed(made)]
    report = reconcile(made.workspace, _written(tmp_path / "may.csv", ["Task ID", "Cost (USD)"], lines))

    own_price = next(row for row in report.rows if row["invoice_usd"] == Decimal("0.050000"))
    assert own_price["status"] == "matched"
    assert own_price["ledger_usd"] == Decimal("0.050000")
    assert own_price["list_usd"] > Decimal("0.06")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "gb18030"])
def test_a_messy_invoice_is_read_all_the_same(made: World, tmp_path: Path, encoding: str) -> None:
    """Encodings, semicolons, decimal commas, thousands points, a title, a time zone, repetitions, a total."""
    head = [["Rechnung Mai", "", "", ""], ["", "", "", ""]]
    body = [
        ["27.02.2026", task, f"{Decimal(cost):.6f}".replace(".", ",") + " $", "Bücher"]
        for task, cost, _ in _billed(made)
    ]
    foot = [body[0], ["", "", "", ""], ["", "Total", "1.234,567890 $", ""]]
    path = tmp_path / "may.csv"
    table = [*head, ["Zeit", "Vorgang", "Betrag", "Für"], *body, *foot]
    text = "\r\n".join(";".join(cells) for cells in table)
    path.write_bytes(text.encode(encoding))
    mapping = tmp_path / "mapping.toml"
    known = "" if encoding != "gb18030" else "encoding = 'gb18030'\n"
    mapping.write_text(
        f"{known}time_format = '%d.%m.%Y'\ntime_zone = 'Asia/Shanghai'\n"
        "[columns]\ntask_id = 'Vorgang'\namount = 'BETRAG'\ntime = 'Zeit'\n"
    )

    report = reconcile(made.workspace, path, mapping=mapping)

    assert _counts(report) == {"matched": 6, "amount_differs": 1, "only_invoice": 1, "duplicate": 1}
    assert report.summaries == 1
    assert report.invoice_micros == int(made.billed().scaleb(6))


def test_what_the_invoice_lacks_is_told(made: World, tmp_path: Path) -> None:
    """An image that was not billed is good news, or an invoice of which a page is missing."""
    billed = _billed(made)
    lines = [[task, cost] for task, cost, _ in billed[:-2]]
    known = {row["task_id"] for row in made.workspace.tables.read("attempts").to_pylist() if row["cost_usd"]}
    lacking = len(known & {task for task, _, _ in billed[-2:]})

    report = reconcile(made.workspace, _written(tmp_path / "a.csv", ["id", "amount"], lines))

    assert report.counts[Status.ONLY_LEDGER] == lacking
    early = [[task, cost, "2026-01-01T00:00:00Z"] for task, cost in lines]
    of_january = reconcile(made.workspace, _written(tmp_path / "b.csv", ["id", "amount", "time"], early))
    assert of_january.counts[Status.ONLY_LEDGER] == 0


def test_an_invoice_that_rounds_is_no_drift(made: World, tmp_path: Path) -> None:
    """Four digits on the invoice against six in the ledger: half of the last digit is no difference, more is."""
    lines = [[task, f"{Decimal(cost):.4f}"] for task, cost, _ in _billed(made)]
    path = _written(tmp_path / "a.csv", ["id", "amount"], lines)

    assert reconcile(made.workspace, path).counts[Status.MATCHED] == 6
    exact = reconcile(made.workspace, path, tolerance_usd=Decimal(0))
    assert exact.counts[Status.MATCHED] < 6


def test_further_charges_and_refunds_of_a_task_are_summed(world: Callable[..., World], tmp_path: Path) -> None:
    """A charge in two parts, or one that was taken back in part, is one task all the same."""
    made = world(faults=FAULTS)
    made.catalogue("one", rows(1, prompt=["thing number 3 ."]))
    made.run()
    ((task, cost, _),) = _billed(made)
    parts = [[task, "0.08", "2026-03-01T10:00:00Z"], [task, "(0.03)", "2026-03-01T11:00:00Z"]]
    report = reconcile(made.workspace, _written(tmp_path / "a.csv", ["id", "amount", "time"], parts))

    assert cost == "0.050000"
    assert [row["status"] for row in report.rows] == ["matched", "matched"]
    assert sum(row["difference_usd"] for row in report.rows) == 0
    assert "lines 2, 3 are of one task" in report.rows[0]["note"]


def test_an_invoice_without_tasks_is_held_against_days(made: World, tmp_path: Path) -> None:
    """Some providers bill by the day: better to know on which day something is wrong than nothing."""
    (day,) = {row["day"] for row in _days(made)}
    spent = summary(made.workspace).cost_micros
    lines = [[day.isoformat(), str(Decimal(spent).scaleb(-6))], ["2026-01-02", "1.00"]]

    report = reconcile(made.workspace, _written(tmp_path / "a.csv", ["Date", "Total"], lines))

    assert _counts(report) == {"matched": 1, "only_invoice": 1}
    assert report.ledger_micros == spent


def test_a_correction_restates_every_figure(world: Callable[..., World], tmp_path: Path) -> None:
    """After an invoice has the last word, tables, totals and the cap's counters agree with it, and once is enough."""
    made = world(faults=FAULTS, max_attempts=1)
    made.catalogue("one", rows(5, prompt=[f"thing number {i} ." for i in range(5)]))
    made.run()
    lines = [[task, str(Decimal(cost) / 2)] for task, cost, _ in _billed(made)]
    path = _written(tmp_path / "may.csv", ["id", "amount"], lines)

    report = reconcile(made.workspace, path, correct=True)
    listed = made.workspace.tables.read("reconciliation").to_pylist()
    again = reconcile(made.workspace, path, correct=True)

    assert _counts(report) == {"amount_differs": 4, "only_invoice": 1}
    # What the table lists as different is what someone still has to see to.
    assert Counter(row["status"] for row in listed) == {"matched": 4, "only_invoice": 1}
    assert all("it stood here with $0.0" in row["note"] for row in listed if row["status"] == "matched")
    assert (report.corrected, again.corrected) == (4, 0)
    assert _counts(again) == {"matched": 4, "only_invoice": 1}
    tables = made.workspace.tables
    totals = {
        name: sum(tables.read(name).column("cost_usd").to_pylist()) for name in ("attempts", "results", "cost_daily")
    }
    assert len(set(totals.values())) == 1
    assert totals["attempts"] == Decimal(summary(made.workspace).cost_micros).scaleb(-6)
    held = [counter for scope, counter in made.workspace.ledger.counters().items() if scope.startswith("day:")]
    assert sum(counter.spent for counter in held) == summary(made.workspace).cost_micros
    assert "invoice" in tables.read("attempts").column("cost_source").to_pylist()


def test_a_line_for_each_image_is_no_repetition(world: Callable[..., World], tmp_path: Path) -> None:
    """The second of two images looks like the first listed twice: half of the money was taken from the books."""
    made = world(faults=[{"fault": "several_images", "images": 2}])
    made.catalogue("one", rows(1))
    made.run()
    before = summary(made.workspace).cost_micros
    ((task, cost, time),) = _billed(made)
    path = _written(tmp_path / "a.csv", ["id", "amount", "time"], [[task, str(Decimal(cost) / 2), time]] * 2)

    report = reconcile(made.workspace, path, correct=True)

    assert _counts(report) == {"matched": 2}
    assert report.corrected == 0
    assert summary(made.workspace).cost_micros == before


def test_a_refund_of_an_earlier_invoice_s_charge_is_no_price(world: Callable[..., World], tmp_path: Path) -> None:
    """December's refund of November's charge set the cost of the image below zero, and made room under the cap."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    before = summary(made.workspace).cost_micros
    ((task, cost, _),) = _billed(made)
    path = _written(tmp_path / "december.csv", ["id", "amount"], [[task, f"-{cost}"]])

    report = reconcile(made.workspace, path, correct=True)

    assert _counts(report) == {"amount_differs": 1}
    assert "a refund of what another invoice charged" in report.rows[0]["note"]
    assert not report.ok
    assert summary(made.workspace).cost_micros == before


@pytest.mark.parametrize("when", [("", ""), ("2026-11-20", "2026-12-03")])
def test_a_further_charge_on_a_later_invoice_is_no_price(
    world: Callable[..., World], tmp_path: Path, when: tuple[str, str]
) -> None:
    """December's two cents for a task of November became all that it had cost: what November charged was gone."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    ((task, cost, _),) = _billed(made)
    header = ["id", "amount", "time"]
    november, december = [task, cost, when[0]], [task, "0.02", when[1]]
    assert reconcile(made.workspace, _written(tmp_path / "november.csv", header, [november])).ok
    path = _written(tmp_path / "december.csv", header, [december])

    report = reconcile(made.workspace, path, correct=True)

    assert (_counts(report), report.corrected, report.ok) == ({"amount_differs": 1}, 0, False)
    assert "november.csv has charged for it too" in report.rows[0]["note"]
    assert summary(made.workspace).cost_micros == int(Decimal(cost).scaleb(6))

    _written(path, header, [december, november])
    assert reconcile(made.workspace, path, correct=True).ok
    assert summary(made.workspace).cost_micros == int((Decimal(cost) + Decimal("0.02")).scaleb(6))


def test_a_task_that_a_later_invoice_charges_again_is_told(world: Callable[..., World], tmp_path: Path) -> None:
    """The same amount once more agreed with the books on each invoice, and was paid for on each."""
    made = world()
    made.catalogue("one", rows(3))
    made.run()
    header = ["id", "amount", "time"]
    november = [[task, cost, "2026-11-20"] for task, cost, _ in _billed(made)]
    december = [[task, cost, "2026-12-03"] for task, cost, _ in november[:2]]
    before = summary(made.workspace).cost_micros
    first, second = (
        _written(tmp_path / f"{name}.csv", header, lines)
        for name, lines in (("november", november), ("december", december))
    )
    assert reconcile(made.workspace, first).ok

    report = reconcile(made.workspace, second, correct=True)

    asked = sum(int(Decimal(cost).scaleb(6)) for _, cost, _ in december)
    assert (_counts(report), report.corrected, report.ok) == ({"charged_again": 2}, 0, False)
    assert (report.again.tasks, report.again.micros, report.again.invoices) == (2, asked, {"november.csv"})
    assert report.difference_micros == sum(int(row["difference_usd"].scaleb(6)) for row in report.rows) == asked
    assert "november.csv has charged for it on 2026-11-20" in report.rows[0]["note"]
    assert summary(made.workspace).cost_micros == before
    table = made.workspace.tables.read("reconciliation")
    assert sum(table.column("ledger_usd").to_pylist()) == Decimal(before).scaleb(-6)
    assert reconcile(made.workspace, first).ok, "it is the second that is one too many, also when they are held again"
    assert _counts(reconcile(made.workspace, second)) == {"charged_again": 2}

    _written(second, header, [*december, *november])
    assert reconcile(made.workspace, second, correct=True).ok, "who has both count says so"
    assert summary(made.workspace).cost_micros == before + asked


def test_a_charge_that_was_taken_back_can_be_made_again(world: Callable[..., World], tmp_path: Path) -> None:
    """Charged, refunded, charged: each on an invoice of its own, and paid once. A fourth is one too many."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    ((task, cost, _),) = _billed(made)

    def held(name: str, amount: str, day: str) -> Reconciliation:
        return reconcile(made.workspace, _written(tmp_path / name, ["id", "amount", "day"], [[task, amount, day]]))

    assert held("a.csv", cost, "2026-11-01").ok
    assert _counts(held("b.csv", f"-{cost}", "2026-12-01")) == {"amount_differs": 1}
    # Within any tolerance nothing is charged by a line that takes back.
    back = _written(tmp_path / "b.csv", ["id", "amount", "day"], [[task, f"-{cost}", ""]])
    assert reconcile(made.workspace, back, tolerance_usd=Decimal(1)).again.tasks == 0
    assert _counts(held("b.csv", f"-{cost}", "2026-12-01")) == {"amount_differs": 1}
    assert _counts(held("c.csv", cost, "2026-12-01")) == {"matched": 1}
    assert _counts(held("d.csv", cost, "2026-12-24")) == {"charged_again": 1}
    # The fourth made the third one too many as well, once that was held again.
    assert _counts(held("c.csv", cost, "2026-12-01")) == {"matched": 1}
    assert held("a.csv", cost, "2026-11-01").ok
    assert _counts(held("d.csv", cost, "2026-12-24")) == {"charged_again": 1}


@pytest.mark.parametrize("day", ["2026-12-03", "2026-12-04"])
def test_a_second_charge_that_two_files_list_is_one_too_many_once(
    world: Callable[..., World], tmp_path: Path, day: str
) -> None:
    """December's final list repeats December's: the excess stood on each, and nothing said that it was one charge."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    ((task, cost, _),) = _billed(made)
    once = summary(made.workspace).cost_micros
    november, december, final = (
        _written(tmp_path / name, ["id", "amount", "day"], [[task, cost, of]])
        for name, of in (("november.csv", "2026-11-20"), ("december.csv", "2026-12-03"), ("final.csv", day))
    )
    assert reconcile(made.workspace, november).ok
    assert _counts(reconcile(made.workspace, december)) == {"charged_again": 1}

    report = reconcile(made.workspace, final, correct=True)

    assert (_counts(report), report.ok, report.corrected) == ({"duplicate": 1}, False, 0)
    assert (report.again.tasks, report.listed.tasks, report.listed.micros) == (0, 1, once)
    assert report.listed.invoices == {"december.csv"}
    assert report.rows[0]["note"] == "the same further charge as on december.csv, where it is charged again"
    for path, counts in (
        (november, {"matched": 1}),
        (december, {"charged_again": 1}),
        (final, {"duplicate": 1}),
        (november, {"matched": 1}),
    ):
        report = reconcile(made.workspace, path)
        assert _counts(report) == counts
        assert report.difference_micros == (once if path == december else 0)
        listed = made.workspace.tables.read("reconciliation")
        assert sum(listed.column("difference_usd").to_pylist()) == Decimal(once).scaleb(-6)
        assert sum(listed.column("ledger_usd").to_pylist()) == Decimal(once).scaleb(-6)


@pytest.mark.parametrize("new", [Decimal("0.02"), Decimal("-0.02")], ids=["a_charge", "a_refund"])
def test_of_a_charge_that_is_listed_in_part_the_rest_is_one_too_many(
    world: Callable[..., World], tmp_path: Path, new: Decimal
) -> None:
    """What another file has as a further charge is left out, and no more than that; a refund alone is no charge."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    ((task, cost, _),) = _billed(made)
    header = ["id", "amount", "day"]
    for name, day in (("november.csv", "2026-11-20"), ("december.csv", "2026-12-03")):
        reconcile(made.workspace, _written(tmp_path / name, header, [[task, cost, day]]))
    lines = [[task, str(Decimal(cost) - new), "2026-12-03"], [task, str(new), "2026-12-20"]]

    report = reconcile(made.workspace, _written(tmp_path / "final.csv", header, lines))

    excess = max(new, Decimal(0))
    assert [row["status"] for row in report.rows] == ["duplicate", "charged_again" if excess else "duplicate"]
    assert report.again.micros == report.difference_micros == int(excess.scaleb(6))
    assert sum(row["difference_usd"] for row in report.rows) == excess


@pytest.mark.parametrize(
    "days", [("", ""), ("2026-11-20", ""), ("2026-11-20", "2026-11-20"), ("2026-11-20", "2026-11-21")]
)
def test_a_charge_that_two_files_list_is_told_and_is_no_second_one(
    world: Callable[..., World], tmp_path: Path, days: tuple[str, str]
) -> None:
    """A month's list that is fetched anew each week overlaps, and may round; who pays each file has to know that."""
    made = world()
    made.catalogue("one", rows(2))
    made.run()
    header, lines = ["id", "amount", "day"], [[task, cost, days[0]] for task, cost, _ in _billed(made)]
    (task, cost, _), _ = lines
    early = _written(tmp_path / "1.csv", header, [[task, f"{Decimal(cost):.4f}", days[1]]])
    assert reconcile(made.workspace, early).listed.tasks == 0

    report = reconcile(made.workspace, _written(tmp_path / "2.csv", header, lines))

    assert (_counts(report), report.ok, report.again.tasks) == ({"matched": 2}, True, 0)
    assert report.listed.tasks == 1
    assert report.listed.micros == int(Decimal(cost).scaleb(6))
    assert report.rows[0]["note"] == "1.csv lists it too"
    assert report.rows[1]["note"] is None


def test_an_invoice_that_is_issued_anew_has_the_last_word(world: Callable[..., World], tmp_path: Path) -> None:
    """The same day's charge with another amount is the same charge; only one that comes on top is a further one."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    ((task, _, _),) = _billed(made)
    for name, amount in (("november.csv", "0.05"), ("november, corrected.csv", "0.06")):
        path = _written(tmp_path / name, ["id", "amount", "day"], [[task, amount, "2026-11-20"]])
        assert reconcile(made.workspace, path, correct=True).ok
    assert summary(made.workspace).cost_micros == 60_000


def test_an_abandoned_attempt_that_was_billed_is_at_risk_no_longer(world: Callable[..., World], tmp_path: Path) -> None:
    """Giving up on a task frees no money, as it may have been billed; the invoice that says so does."""
    made = world(faults=[{"fault": "slow_task", "seconds": 3600, "times": 1}], task_deadline_s=1)
    made.catalogue("one", rows(1))
    made.run()
    made.run(resubmit_unknown=True)
    before = summary(made.workspace)
    assert before.at_risk_micros > 0
    (abandoned,) = (row for row in made.workspace.tables.read("attempts").to_pylist() if row["state"] == "abandoned")
    lines = [[abandoned["task_id"], "0.068"]]

    reconcile(made.workspace, _written(tmp_path / "may.csv", ["id", "amount"], lines), correct=True)

    after = summary(made.workspace)
    assert after.at_risk_micros == 0
    assert after.cost_micros == before.cost_micros + 68_000
    assert all(counter.at_risk == 0 for counter in made.workspace.ledger.counters().values())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,amount\n", "there is no line below its header"),
        ("a,b\n1,2\n", "no header with an amount"),
        ('id,amount\nt1,"1,234"\n', "can be read in two ways"),
        ("id,amount,time\nt1,1.5,31/12/2026\n", "line 2: the time '31/12/2026' is not ISO 8601"),
        ("id,amount,time\nt1,1.5,20261122103000\n", "line 2: the time '20261122103000' is not ISO 8601"),
        ("id,amount,time\nt1,1.5,0001-01-01\n", "line 2: the time '0001-01-01' is none"),
        ("id,price,total\nt1,0.05,0.10\n", "in any of the columns 'price', 'total'"),
        ("id,amount,amount\nt1,0.05,0.10\n", "in any of the columns 'amount', 'amount'"),
        ("PK\x03\x04", "save it as CSV"),
        ("id,amount\nt1,1.5\n", None),
        ("id,amount,amount_usd\nt1,150,1.5\n", None),
    ],
)
def test_what_can_not_be_read_is_said_in_one_line(tmp_path: Path, content: str, says: str | None) -> None:
    """Guessing at money is worse than asking."""
    path = tmp_path / "a.csv"
    path.write_text(content)

    if says is None:
        assert read_invoice(path, Mapping.model_validate({})).lines[0].amount_micros == 1_500_000
        return
    with pytest.raises(UserError, match=says):
        read_invoice(path, Mapping.model_validate({}))


def test_a_mapping_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    """The mark that it begins with was a statement that is no TOML."""
    path = tmp_path / "mapping.toml"
    path.write_text("decimal = ','", encoding="utf-8-sig")
    assert load_mapping(path).decimal == ","


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"time_zone": "America"}, "there is no time zone 'America'"),
        ({"encoding": "undefined"}, "is not text in"),
        ({"encoding": "a\0"}, "is not text in"),
        ({"time_format": "%d.%d.%Y"}, "line 2: the time '20.11.2026' is not of the form %d.%d.%Y"),
    ],
)
def test_a_slip_in_a_mapping_is_said_in_one_line(tmp_path: Path, mapping: dict[str, str], says: str) -> None:
    """Each ended as a defect of ours."""
    path = _written(tmp_path / "a.csv", ["id", "amount", "time"], [["t1", "0.05", "20.11.2026"]])
    with pytest.raises(UserError, match=says):
        read_invoice(path, Mapping.model_validate(mapping))


@pytest.mark.parametrize(
    ("amount", "micros"),
    [
        ("0.0672", 67_200),
        ("$1,234.50", 1_234_500_000),
        ("US$ 0.05", 50_000),
        ("(0.05)", -50_000),
        ("0.05-", -50_000),
        ("\u22120.05", -50_000),
        ("1'000.00", 1_000_000_000),
        ("6.72E-2", 67_200),
        ("0.5 EUR", None),
        ("¥3", None),
        ("nan", None),
        ("", None),
        ("20261122103000123456", None),
    ],
)
def test_amounts_are_read_as_people_write_them(tmp_path: Path, amount: str, micros: int | None) -> None:
    """Another currency is no number of dollars, however it looks."""
    path = _written(tmp_path / "a.csv", ["id", "amount"], [["t1", amount], ["t2", "0.25"]])

    line = read_invoice(path, Mapping.model_validate({"decimal": "."})).lines[0]

    assert line.amount_micros == micros
    assert (line.problem is None) is (micros is not None)


def test_cents_that_end_in_a_zero_are_told_to_the_cent_all_the_same(tmp_path: Path) -> None:
    """Of 0.10 and 0.20 a tenth was taken for the last digit: 0.0672 overcharged by half was a match."""
    path = _written(tmp_path / "a.csv", ["id", "amount"], [["t1", "0.10"], ["t2", "0.20"]])
    assert read_invoice(path, Mapping.model_validate({})).rounding_micros == 5_000


def test_another_currency_in_a_column_of_its_own_is_no_dollars(tmp_path: Path) -> None:
    """With --correct the ledger would take yuan for dollars, and the caps with it."""
    lines = [["t1", "0.48", "CNY"], ["t2", "0.07", "usd"], ["t3", "0.07", "US$"], ["t4", "0.07", ""]]
    path = _written(tmp_path / "a.csv", ["id", "amount", "Currency"], lines)
    read = read_invoice(path, Mapping.model_validate({})).lines
    assert [line.amount_micros for line in read] == [None, 70_000, 70_000, 70_000]
    assert read[0].problem == "the amount is in CNY, and not in US dollars"


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_an_invoice_of_another_zone_s_days_is_held_against_those(made: World, tmp_path: Path, zone: str) -> None:
    """A day of Asia begins on the UTC day before, and all that was spent stood on the day after the invoice's."""
    attempts = made.workspace.tables.read("attempts").to_pylist()
    (day,) = {row["created_at"].astimezone(ZoneInfo(zone)).date() for row in attempts}
    path = _written(
        tmp_path / "a.csv",
        ["Date", "Total"],
        [[day.isoformat(), str(Decimal(summary(made.workspace).cost_micros).scaleb(-6))]],
    )
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(f"time_zone = '{zone}'")

    report = reconcile(made.workspace, path, mapping=mapping)

    assert _counts(report) == {"matched": 1}
    assert report.rows[0]["day"] == day


def _days(world: World) -> list[dict[str, Any]]:
    from nanobanana_pipeline.reporting.costs import publish_cost_daily  # noqa: PLC0415 - for this one test

    publish_cost_daily(world.workspace)
    return world.workspace.tables.read("cost_daily").to_pylist()
