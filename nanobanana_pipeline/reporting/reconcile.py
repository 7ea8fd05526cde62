"""Holding an invoice against the ledger: each line and each paid attempt is matched, differs, or is missing there.

Three figures are compared: the invoice's, the ledger's (the provider's own, or by the price list), and what the price
list makes of the tokens. Reading the file is `invoice`'s work. Nothing is changed in the ledger unless it is asked for.
"""

import bisect
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.generation.publishing import Row, publish_shard, replace_rows, usd
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import budget, schema
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline.model_specs.pricing import Usage, cost_of
from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.reporting.costs import publish_cost_daily, shown
from nanobanana_pipeline.reporting.invoice import Invoice, InvoiceLine, by_task, day_of, load_mapping, read_invoice
from nanobanana_pipeline.reporting.repricing import images_given

_attempts = schema.attempts

_DAY_MS: Final = 86_400_000
_A_DAY: Final = timedelta(days=1)
_NEARBY_MS: Final = 300_000
"""How far the time of a line may be from that of the attempt of unknown outcome that it may belong to."""
_EXAMPLES: Final = 20
_TO_HAVE_BOTH: Final = "to have both count, add its lines of the task to this file"
_UNKNOWN: Final = (AttemptState.UNKNOWN.value, AttemptState.ABANDONED.value)


class Status(StrEnum):
    """What became of a line, or of an attempt that no line names."""

    MATCHED = "matched"
    AMOUNT_DIFFERS = "amount_differs"
    ONLY_INVOICE = "only_invoice"
    ONLY_LEDGER = "only_ledger"
    DUPLICATE = "duplicate"
    CHARGED_AGAIN = "charged_again"


@dataclass(slots=True)
class Overlap:
    """Tasks that other invoices have charged for too: how many, for how many micro-dollars here, and which invoices."""

    tasks: int = 0
    micros: int = 0
    invoices: set[str] = field(default_factory=set)

    def add(self, rows: Iterable[Row], invoices: Iterable[str]) -> None:
        """Count one more task, by its rows."""
        self.tasks += 1
        self.micros += sum(_whole(row["invoice_usd"]) for row in rows)
        self.invoices |= set(invoices)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"tasks": self.tasks, "usd": budget.usd(self.micros), "invoices": sorted(self.invoices)}


@dataclass(slots=True)
class Reconciliation:
    """An invoice held against the ledger, as it was before any correction. Money is in micro-dollars.

    `invoice_micros` leaves out duplicates, `ledger_micros` and `list_micros` are sums over the attempts that the
    invoice is about. `elsewhere` names, for tasks whose amount differs, an invoice that charged for them too. `again`
    are tasks that agree with the books and were charged for on another invoice already, `listed` those whose charge
    itself may stand on another: `duplicate` where it is `charged_again` there.
    `corrected` counts the attempts whose cost was set to the invoice's, `left` the lines and attempts that someone has
    still to see to. Without `names_tasks` there was nothing that a correction could have been for. `rows` are in the
    columns of the table `reconciliation`.
    """

    invoice: str
    tolerance_micros: int
    names_tasks: bool = True
    counts: Counter[Status] = field(default_factory=Counter)
    unreadable: int = 0
    summaries: int = 0
    invoice_micros: int = 0
    ledger_micros: int = 0
    list_micros: int = 0
    elsewhere: dict[str, str] = field(default_factory=dict)
    again: Overlap = field(default_factory=Overlap)
    listed: Overlap = field(default_factory=Overlap)
    corrected: int = 0
    left: int = 0
    rows: list[Row] = field(default_factory=list)

    @property
    def difference_micros(self) -> int:
        """What the invoice has beyond the ledger."""
        return self.invoice_micros - self.ledger_micros

    @property
    def ok(self) -> bool:
        """Whether every line and every paid attempt has its match now, and no line could not be read."""
        return not self.left

    @property
    def examples(self) -> list[Row]:
        """The rows that are not matched, the largest differences first."""
        unmatched = [row for row in self.rows if row["status"] != Status.MATCHED]
        return sorted(unmatched, key=lambda row: -abs(row["difference_usd"] or 0))[:_EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: money as strings of dollars with six places."""
        return {
            "invoice": self.invoice,
            "ok": self.ok,
            "counts": {status.value: self.counts[status] for status in Status},
            "unreadable": self.unreadable,
            "summaries": self.summaries,
            "invoice_usd": budget.usd(self.invoice_micros),
            "ledger_usd": budget.usd(self.ledger_micros),
            "list_usd": budget.usd(self.list_micros),
            "difference_usd": budget.usd(self.difference_micros),
            "tolerance_usd": budget.usd(self.tolerance_micros),
            "corrected": self.corrected,
            "charged_again": self.again.as_dict(),
            "listed_elsewhere": self.listed.as_dict(),
        }


def reconcile(
    workspace: Workspace,
    invoice: str | Path,
    *,
    mapping: str | Path | None = None,
    tolerance_usd: Decimal | None = None,
    correct: bool = False,
) -> Reconciliation:
    """Hold a CSV invoice against the ledger and write the table `reconciliation` (its rows of this file's name).

    An invoice that names tasks is matched line by line, one that does not day by day (UTC). `tolerance_usd` is what a
    line may differ by; by default half of the last digit that the invoice has. With `correct` the invoice has the last
    word: closed attempts get its amounts (`cost_source` is `invoice`), and the tables are written anew. The
    report is then of what there was before, the table of what there is since. Raises `UserError` for a file or mapping
    that can't be read.
    """
    read = read_invoice(invoice, load_mapping(mapping))
    tolerance = read.rounding_micros if tolerance_usd is None else int(tolerance_usd.scaleb(6))
    report = _hold(workspace, read, tolerance)
    rows = report.rows
    if correct and read.has_tasks:
        corrected = _correct(workspace, report)
        rows = _hold(workspace, read, tolerance).rows
        for row in rows:
            if row.get("attempt_id") in corrected:
                row["note"] = f"corrected: it stood here with {shown(corrected[row['attempt_id']])}"
    report.left = sum(row["status"] != Status.MATCHED for row in rows)
    replace_rows(workspace, "reconciliation", {"invoice": read.name}, lambda: rows)
    return report


def _hold(workspace: Workspace, invoice: Invoice, tolerance_micros: int) -> Reconciliation:
    """Hold the lines against the ledger as it is now."""
    names_tasks = any(line.task_id for line in invoice.lines)
    report = Reconciliation(invoice.name, tolerance_micros, names_tasks, summaries=len(invoice.summaries))
    now = time.time_ns() // 1000
    with workspace.ledger.database.read() as connection:
        make = _by_task if invoice.has_tasks else _by_day
        for row in make(connection, workspace.spec, invoice, report):
            report.rows.append({"invoice": invoice.name, "reconciled_at": now, **row})
    report.rows.sort(key=lambda row: (row["source_line"] is None, row["source_line"] or 0))
    _look_elsewhere(workspace, report)
    _sum_up(report)
    return report


@dataclass(slots=True)
class _Billed:
    """The lines of one task: those that count, and repetitions of them."""

    lines: list[InvoiceLine]
    repeated: list[InvoiceLine]

    @property
    def micros(self) -> int:
        return sum(line.amount_micros or 0 for line in self.lines)


def _by_task(connection: Connection, spec: ModelSpec, invoice: Invoice, report: Reconciliation) -> Iterator[Row]:
    billed = {task_id: _parted(lines) for task_id, lines in by_task(invoice.lines)}
    first, last = _period(invoice)
    unknown: list[int] = []
    for attempt in _paid_attempts(connection):
        if attempt.task_id is None:
            if attempt.state in _UNKNOWN:
                unknown.append(attempt.created_at)
            continue
        found = billed.pop(attempt.task_id, None)
        if found is not None:
            yield from _matched(spec, attempt, _as_booked(found, attempt, report), report)
        elif attempt.cost_micros and _within(attempt, first, last):
            yield _only_ledger(spec, attempt, report)
    yield from _only_invoice(invoice, billed, sorted(unknown), report)


def _only_invoice(
    invoice: Invoice, billed: dict[str, _Billed], unknown: Sequence[int], report: Reconciliation
) -> Iterator[Row]:
    """The lines whose tasks no attempt has, and those that name no task or can't be read."""
    for task_id, found in billed.items():
        for line in found.lines:
            report.counts[Status.ONLY_INVOICE] += 1
            yield _line_row(line, Status.ONLY_INVOICE, task_id=task_id, note=_perhaps(line, unknown))
        yield from _repeated(found, report)
    for line in invoice.lines:
        if line.problem is not None:
            report.unreadable += 1
            yield _line_row(line, Status.ONLY_INVOICE, note=line.problem)
        elif line.task_id is None:
            report.counts[Status.ONLY_INVOICE] += 1
            yield _line_row(line, Status.ONLY_INVOICE, note="the line names no task")


def _by_day(connection: Connection, spec: ModelSpec, invoice: Invoice, report: Reconciliation) -> Iterator[Row]:
    """Sums of days, for an invoice without tasks: what differs can then only be told by the day.

    One that names days and no times of day means those of its own time zone.
    """
    zone = invoice.zone if invoice.whole_days else UTC
    lines: dict[date, list[InvoiceLine]] = {}
    for line in invoice.lines:
        if line.problem is not None or line.time is None:
            report.unreadable += 1
            yield _line_row(line, Status.ONLY_INVOICE, note=line.problem or "the line has neither task nor time")
            continue
        lines.setdefault(day_of(line.time, zone), []).append(line)
    ledger: Counter[date] = Counter()
    listed: Counter[date] = Counter()
    for attempt in _paid_attempts(connection):
        day = date.fromisoformat(attempt.day) if zone is UTC else day_of(attempt.created_at, zone)
        ledger[day] += attempt.cost_micros
        listed[day] += _list_micros(spec, attempt) if attempt.cost_micros else 0
    first, last = min(lines, default=None), max(lines, default=None)
    for day, of_day in sorted(lines.items()):
        total = sum(line.amount_micros or 0 for line in of_day)
        same = abs(total - ledger[day]) <= report.tolerance_micros * max(1, len(of_day))
        status = Status.MATCHED if same else Status.AMOUNT_DIFFERS if ledger[day] else Status.ONLY_INVOICE
        for i, line in enumerate(of_day):
            report.counts[status] += 1
            # A day has one sum in the ledger, which stands on its first line.
            note = None if len(of_day) == 1 else f"one of {len(of_day)} lines of the day, {shown(total)} in all"
            mine = (ledger[day], listed[day]) if i == 0 else (0, 0)
            yield _line_row(line, status, note=note, day=day, ledger=mine[0], listed=mine[1])
    for day in sorted(ledger):
        if first and last and first <= day <= last and day not in lines and ledger[day]:
            report.counts[Status.ONLY_LEDGER] += 1
            row = _row(Status.ONLY_LEDGER, ledger_usd=usd(ledger[day]), list_usd=usd(listed[day]), day=day)
            yield row | {"difference_usd": usd(-ledger[day]), "note": "the invoice has no line of this day"}


def _paid_attempts(connection: Connection) -> Iterable[Any]:
    """Attempts that have cost something, may have, or have a task that may be billed."""
    query = sa.select(_attempts).where(
        sa.or_(_attempts.c.task_id.is_not(None), _attempts.c.cost_micros != 0, _attempts.c.at_risk_micros != 0)
    )
    return connection.execute(query.execution_options(yield_per=5000))


def _parted(lines: Sequence[InvoiceLine]) -> _Billed:
    seen: set[tuple[int | None, int | None]] = set()
    billed = _Billed([], [])
    for line in lines:
        # The same amount at the same time again is the same charge listed twice; any other is a further one, or a
        # refund.
        key = (line.amount_micros, line.time)
        (billed.repeated if key in seen else billed.lines).append(line)
        seen.add(key)
    return billed


def _as_booked(found: _Billed, attempt: Any, report: Reconciliation) -> _Billed:
    """The lines of a task, repetitions among them where the ledger has all of it: one may stand for each image."""
    everything = _Billed(sorted([*found.lines, *found.repeated], key=lambda line: line.number), [])
    return everything if _same(everything, attempt, report) else found


def _same(found: _Billed, attempt: Any, report: Reconciliation) -> bool:
    return abs(found.micros - attempt.cost_micros) <= report.tolerance_micros


def _matched(spec: ModelSpec, attempt: Any, found: _Billed, report: Reconciliation) -> Iterator[Row]:
    listed = _list_micros(spec, attempt)
    same = _same(found, attempt, report)
    status = Status.MATCHED if same else Status.AMOUNT_DIFFERS
    note = _note(attempt, found, listed, same=same)
    for i, line in enumerate(found.lines):
        report.counts[status] += 1
        # The attempt's own figures stand on the first of its lines, so that columns can be added up.
        ledger, of_list = (attempt.cost_micros, listed) if i == 0 else (0, 0)
        yield _line_row(line, status, attempt=attempt, note=note, ledger=ledger, listed=of_list)
    yield from _repeated(found, report, attempt)


def _repeated(found: _Billed, report: Reconciliation, attempt: Any = None) -> Iterator[Row]:
    for line in found.repeated:
        report.counts[Status.DUPLICATE] += 1
        note = f"the same charge as on line {found.lines[0].number}"
        yield _line_row(line, Status.DUPLICATE, attempt=attempt, note=note) | {"difference_usd": usd(0)}


def _only_ledger(spec: ModelSpec, attempt: Any, report: Reconciliation) -> Row:
    report.counts[Status.ONLY_LEDGER] += 1
    return _row(
        Status.ONLY_LEDGER,
        task_id=attempt.task_id,
        day=date.fromisoformat(attempt.day),
        ledger_usd=usd(attempt.cost_micros),
        list_usd=usd(_list_micros(spec, attempt)),
        difference_usd=usd(-attempt.cost_micros),
        note="paid by the ledger, and not on the invoice",
        **_of(attempt),
    )


def _note(attempt: Any, found: _Billed, listed: int, *, same: bool) -> str | None:
    notes: list[str] = []
    if len(found.lines) > 1:
        numbers = ", ".join(str(line.number) for line in found.lines)
        notes.append(f"lines {numbers} are of one task, {shown(found.micros)} in all")
    if attempt.at_risk_micros:
        notes.append(f"its outcome was not known here ({attempt.state}): it was billed")
    elif attempt.state == AttemptState.FAILED and found.micros > 0 and not attempt.cost_micros:
        notes.append("the task failed, and was billed all the same")
    if found.micros < 0:
        notes.append("a refund of what another invoice charged, which no correction takes for a price")
    if not same:
        notes.append(f"the ledger goes by {_source(attempt)}")
        if listed == found.micros:
            notes.append("the invoice is what the price list makes of the tokens")
    return "; ".join(notes) or None


def _source(attempt: Any) -> str:
    match attempt.cost_source:
        case "provider":
            return "the provider's own figure"
        case "invoice":
            return "another invoice"
        case None:
            return "no cost at all"
        case _:
            return f"the price list {attempt.price_version}"


def _list_micros(spec: ModelSpec, attempt: Any) -> int:
    """What the price list makes of an attempt; nothing for one that gave nothing to price."""
    if attempt.state not in {AttemptState.COMPLETED, AttemptState.STORED, AttemptState.UNUSABLE}:
        return 0
    usage = Usage(attempt.prompt_tokens, attempt.completion_tokens, attempt.total_tokens)
    day = date.fromisoformat(attempt.day)
    return cost_of(spec, usage, resolution=attempt.resolution, images=images_given(attempt) or 0, day=day).micros


def _perhaps(line: InvoiceLine, unknown: Sequence[int]) -> str:
    """What a task that the ledger does not know may be."""
    if line.time is not None and unknown:
        near = bisect.bisect(unknown, line.time + _NEARBY_MS) - bisect.bisect_left(unknown, line.time - _NEARBY_MS)
        if near:
            return f"the ledger has no such task; {near} submits of unknown outcome were made at about that time"
    return "the ledger has no such task"


def _period(invoice: Invoice) -> tuple[int, int]:
    """From when to when the invoice is, in milliseconds; all of time when its lines have no times."""
    times = [line.time for line in invoice.lines if line.time is not None]
    if not times:
        return 0, 2**62
    return min(times), max(times) + (_DAY_MS if invoice.whole_days else 0)


def _within(attempt: Any, first: int, last: int) -> bool:
    """Whether an attempt was made or completed in a period: which of the two a provider goes by is not known."""
    return attempt.created_at <= last and (attempt.completed_at or attempt.created_at) >= first


def _line_row(
    line: InvoiceLine,
    status: Status,
    *,
    attempt: Any = None,
    task_id: str | None = None,
    note: str | None = None,
    day: date | None = None,
    ledger: int | None = None,
    listed: int | None = None,
) -> Row:
    return _row(
        status,
        source_line=line.number,
        task_id=task_id or line.task_id,
        day=day or (day_of(line.time) if line.time is not None else None),
        invoice_usd=usd(line.amount_micros),
        ledger_usd=usd(ledger),
        list_usd=usd(listed),
        difference_usd=usd((line.amount_micros or 0) - (ledger or 0)),
        note=note,
        **(_of(attempt) if attempt is not None else {}),
    )


def _of(attempt: Any) -> Row:
    return {name: getattr(attempt, name) for name in ("attempt_id", "item_id", "catalogue")}


def _row(status: Status, **values: Any) -> Row:
    return {"source_line": None, "status": status.value, **values}


def _sum_up(report: Reconciliation) -> None:
    for row in report.rows:
        if row["status"] != Status.DUPLICATE:
            report.invoice_micros += _whole(row.get("invoice_usd"))
            report.ledger_micros += _whole(row.get("ledger_usd"))
            report.list_micros += _whole(row.get("list_usd"))


def _look_elsewhere(workspace: Workspace, report: Reconciliation) -> None:
    """Find what other invoices have charged for the same tasks, by what the table says of them."""
    ours: defaultdict[str, list[Row]] = defaultdict(list)
    for row in report.rows:
        if row["status"] in {Status.MATCHED, Status.AMOUNT_DIFFERS} and row.get("attempt_id"):
            ours[row["task_id"]].append(row)
    if not ours:
        return
    theirs = (pc.field("invoice") != report.invoice) & (pc.field("status") != Status.DUPLICATE.value)
    theirs &= pc.field("task_id").isin(list(ours))
    columns = ["invoice", "task_id", "day", "status", "invoice_usd"]
    charges: defaultdict[str, list[Row]] = defaultdict(list)
    for charge in workspace.tables.read("reconciliation", columns, theirs).to_pylist():
        if charge["invoice_usd"]:
            charges[charge["task_id"]].append(charge)
    for task_id, known in charges.items():
        if ours[task_id][0]["status"] == Status.AMOUNT_DIFFERS:
            _charged_beside(task_id, ours[task_id], known, report)
        else:
            _charged_before(ours[task_id], known, report)
    report.counts = +report.counts  # without what is none any more


def _charged_beside(task_id: str, rows: Sequence[Row], known: Sequence[Row], report: Reconciliation) -> None:
    """Say of a task whose amount differs which invoice has a further charge for it."""
    others = [charge["invoice"] for charge in known if not any(_is_same(charge, row) for row in rows)]
    if others:
        report.elsewhere[task_id] = others[-1]
        _add_note(rows, f"{others[-1]} has charged for it too: {_TO_HAVE_BOTH}")


def _charged_before(rows: Sequence[Row], known: Sequence[Row], report: Reconciliation) -> None:
    """Say of a task that agrees with the books whether they have it by another invoice already."""
    others = [charge for charge in known if not any(_may_be_one(charge, row) for row in rows)]
    charged = sum(_whole(row["invoice_usd"]) for row in rows) > 0
    if charged and (first := _charged_first(others, report)) is not None:
        further = [charge for charge in known if charge["status"] == Status.CHARGED_AGAIN]
        listed = _listed(rows, further)
        rest = [row for row in rows if row not in listed]
        if sum(_whole(row["invoice_usd"]) for row in rest) <= 0:  # a refund alone is no further charge
            listed, rest = rows, []
        if listed:
            _list_again(listed, further, report)
        if rest:
            _charge_again(rest, first, report)
        return
    if listed := _listed(rows, known):
        names = _listing(listed, known)
        report.listed.add(listed, names)
        _add_note(listed, f"{_and(names)} {'lists' if len(names) == 1 else 'list'} it too")


def _listed(rows: Sequence[Row], charges: Sequence[Row]) -> Sequence[Row]:
    """The lines that may be one with any of these charges."""
    return [row for row in rows if any(_may_be_one(charge, row) for charge in charges)]


def _listing(rows: Sequence[Row], charges: Sequence[Row]) -> list[str]:
    """The invoices whose charges may be one with any of these lines."""
    return sorted({charge["invoice"] for charge in charges if any(_may_be_one(charge, row) for row in rows)})


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _charged_first(others: Sequence[Row], report: Reconciliation) -> Row | None:
    """The charge of another invoice that the books have already; None for none, or where all was taken back."""
    # One that was called the further one itself makes no other so: of four, a refund among them, two were too many.
    others = [charge for charge in others if charge["status"] != Status.CHARGED_AGAIN]
    # Files that overlap list a charge each; one file lists it twice where it was made twice.
    charges: Counter[tuple[date | None, Decimal]] = Counter()
    for invoice in {charge["invoice"] for charge in others}:
        charges |= Counter((charge["day"], charge["invoice_usd"]) for charge in others if charge["invoice"] == invoice)
    if sum(_whole(amount) * times for (_, amount), times in charges.items()) <= report.tolerance_micros:
        return None
    booked = [charge for charge in others if charge["invoice_usd"] > 0]
    return min(booked, key=lambda charge: (charge["day"], charge["invoice"]), default=None)


def _charge_again(rows: Sequence[Row], first: Row, report: Reconciliation) -> None:
    """Have the lines of a task count on top of what the books have, which is another invoice's charge."""
    report.again.add(rows, {first["invoice"]})
    _add_note(rows, f"{first['invoice']} has charged for it on {first['day']}: {_TO_HAVE_BOTH}")
    for row in rows:
        report.counts[Status.MATCHED] -= 1
        report.counts[Status.CHARGED_AGAIN] += 1
        row |= {"status": Status.CHARGED_AGAIN.value, "ledger_usd": usd(0), "list_usd": usd(0)}
        row["difference_usd"] = row["invoice_usd"]


def _list_again(rows: Sequence[Row], further: Sequence[Row], report: Reconciliation) -> None:
    """Count nowhere what another invoice has as a further charge: of two files that overlap, each had the excess."""
    names = _listing(rows, further)
    report.listed.add(rows, names)
    _add_note(rows, f"the same further charge as on {_and(names)}, where it is charged again")
    for row in rows:
        report.counts[Status.MATCHED] -= 1
        report.counts[Status.DUPLICATE] += 1
        row |= {"status": Status.DUPLICATE.value, "ledger_usd": usd(0), "list_usd": usd(0), "difference_usd": usd(0)}


def _add_note(rows: Iterable[Row], note: str) -> None:
    for row in rows:
        row["note"] = f"{row['note']}; {note}" if row["note"] else note


def _is_same(charge: Row, row: Row) -> bool:
    """Whether two invoices' lines for a task are one charge: the same day's, or where one has no day the same amount.

    The amount may have been rounded, or set right since.
    """
    known = charge["day"] is not None and row["day"] is not None
    return charge["day"] == row["day"] if known else charge["invoice_usd"] == row["invoice_usd"]


def _may_be_one(charge: Row, row: Row) -> bool:
    """Whether two invoices' lines for a task, which agree with the books, can be one charge for all that is known.

    A file may go by another time zone, or by when a task ended: a day more or less is no second charge. A refund is
    none of the charge that it takes back.
    """
    if (charge["invoice_usd"] < 0) != (row["invoice_usd"] < 0):
        return False
    return charge["day"] is None or row["day"] is None or abs(charge["day"] - row["day"]) <= _A_DAY


def _whole(money: Decimal | None) -> int:
    return int((money or Decimal(0)).scaleb(6))


def _correct(workspace: Workspace, report: Reconciliation) -> dict[str, int]:
    """Set the cost of every attempt that this invoice alone charges for to what it says, and write its tables anew.

    Returns what the corrected attempts cost before.
    """
    amounts: Counter[str] = Counter()
    before: Counter[str] = Counter()
    for row in report.rows:
        if row["status"] == Status.AMOUNT_DIFFERS and row.get("attempt_id") and row["task_id"] not in report.elsewhere:
            amounts[row["attempt_id"]] += _whole(row["invoice_usd"])
            before[row["attempt_id"]] += _whole(row["ledger_usd"])

    def enter(postings: Postings) -> dict[str, str]:
        # The charge that a refund belongs to may be on an earlier invoice: no image costs less than nothing.
        prices = sorted((attempt_id, amount) for attempt_id, amount in amounts.items() if amount >= 0)
        shards = {attempt_id: postings.correct(attempt_id, amount, "invoice") for attempt_id, amount in prices}
        return {attempt_id: shard for attempt_id, shard in shards.items() if shard is not None}

    shard_of = workspace.ledger.post_alone(enter)
    report.corrected = len(shard_of)
    for shard in sorted(set(shard_of.values())):
        publish_shard(workspace, shard)
    publish_cost_daily(workspace)
    return {attempt_id: before[attempt_id] for attempt_id in shard_of}
