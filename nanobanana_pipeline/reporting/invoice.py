"""Reading an invoice: a CSV of whatever encoding, separators, number style and time zone into lines of task and amount.

What the file leaves open is guessed only where there is one way to read it; otherwise a mapping file says it. Holding
the lines against the ledger is `reconcile`'s work.
"""

import csv
import io
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanobanana_pipeline.errors import UserError

_KNOWN_NAMES: Final = {
    "task_id": ("taskid", "task", "requestid", "jobid", "generationid", "orderid", "id"),
    "amount": ("amountusd", "costusd", "amount", "cost", "charge", "charged", "fee", "price", "total", "usd"),
    "time": ("time", "timestamp", "createdat", "created", "date", "datetime", "billedat", "day"),
    "currency": ("currency", "currencycode"),
}
_SURELY_DOLLARS: Final = ("amountusd", "costusd")
_DOLLARS: Final = frozenset({"", "us", "usd", "usdollar", "usdollars"})
"""How a column of currencies says US dollars, signs aside."""
_ENCODINGS: Final = ("utf-8-sig", "cp1252")
_DELIMITERS: Final = ",;\t|"
_HEADER_LINES: Final = 30
_YEARS: Final = range(1970, 2300)
_EPOCH: Final = re.compile(r"\d{9,13}(\.\d+)?")
"""Fourteen digits are the year, month, day and time of day of a form that a mapping file has to name."""
_MILLISECONDS: Final = 10**11
"""Numbers of seconds since the epoch are below this, numbers of milliseconds above."""
_SUMMARY: Final = re.compile(r"\b(sub)?total\b|\bsum\b|\bsumme\b|合计|总计", re.IGNORECASE)
_UNITS: Final = {"usd": Decimal(1), "cent": Decimal("0.01"), "micro": Decimal("0.000001")}
_MICRO: Final = Decimal("0.000001")
_MOST_USD: Final = 10**12
"""A table holds less than this; an order's number, in a column that was taken for the amounts, is more."""


class Mapping(BaseModel):
    """How to read an invoice, from a TOML file; every key may be left out.

    `columns` names the file's columns for `task_id`, `amount` and `time`. `time_format` is that of strptime, for times
    that are not ISO 8601; `time_zone` is that of times without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[Literal["task_id", "amount", "time"], str] = Field(default_factory=dict)
    encoding: str | None = None
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    decimal: Literal[".", ","] | None = None
    unit: Literal["usd", "cent", "micro"] = "usd"
    time_format: str | None = None
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """A line of an invoice: `number` in the file, from 1; amounts in micro-dollars, times in milliseconds.

    `problem` says why a line can't be used; its amount is then None.
    """

    number: int
    task_id: str | None
    amount_micros: int | None
    time: int | None
    problem: str | None = None


@dataclass(slots=True)
class Invoice:
    """The lines of an invoice, and how it was read.

    `rounding_micros` is half of the last digit that its amounts have: less than that is no difference.
    `whole_days` says that its times have no time of day: its days are those of `zone`.
    """

    name: str
    lines: list[InvoiceLine] = field(default_factory=list)
    summaries: list[int] = field(default_factory=list)
    """Numbers of the lines that sum up others, which are not lines of their own."""
    rounding_micros: int = 0
    whole_days: bool = False
    zone: tzinfo = UTC
    has_tasks: bool = True


def load_mapping(path: str | Path | None) -> Mapping:
    """The mapping of a TOML file. Raises `UserError` naming what is wrong in it."""
    if path is None:
        return Mapping.model_validate({})
    try:
        return Mapping.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UserError(f"can't read the mapping {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the mapping {path} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"wrong mapping {path}: {where}: {first['msg']}") from None


def read_invoice(path: str | Path, mapping: Mapping) -> Invoice:
    """The lines of a CSV invoice. Raises `UserError` when it has no amounts, or they can be read in two ways."""
    rows = _rows(Path(path), mapping)
    header, places = _header(Path(path), rows, mapping)
    body = [(number, cells) for number, cells in rows if number > header and any(cell.strip() for cell in cells)]
    amounts = [_cell(cells, places["amount"]) for _, cells in body]
    point = mapping.decimal or _decimal_point(Path(path), amounts)
    times = _Times(Path(path), mapping)
    invoice = Invoice(Path(path).name, has_tasks="task_id" in places)
    digits = 0
    for (number, cells), amount in zip(body, amounts, strict=True):
        task_id = _cell(cells, places["task_id"]) if "task_id" in places else ""
        if invoice.has_tasks and _sums_up(task_id, cells):
            invoice.summaries.append(number)
            continue
        value = _amount(amount, point, _cell(cells, places["currency"]) if "currency" in places else "")
        if isinstance(value, Decimal):
            # As written: amounts of 0.10 are told to the cent, however many of them end in a zero.
            digits = max(digits, -int(value.as_tuple().exponent))
        invoice.lines.append(
            InvoiceLine(
                number=number,
                task_id=task_id or None,
                amount_micros=_micros(value, mapping) if isinstance(value, Decimal) else None,
                time=times.read(number, _cell(cells, places["time"])) if "time" in places else None,
                problem=value if isinstance(value, str) else None,
            )
        )
    invoice.rounding_micros = _half_of_last_digit(digits, mapping)
    invoice.whole_days, invoice.zone = times.whole_days, times.zone
    if not invoice.lines:
        raise UserError(f"{path}: there is no line below its header; is it the right file?")
    return invoice


def _rows(path: Path, mapping: Mapping) -> list[tuple[int, list[str]]]:
    """The rows with their line numbers."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"can't read the invoice {path}: {error.strerror}") from None
    text = _decoded(path, data, mapping)
    delimiter = mapping.delimiter or _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        # The line on which a row ends: one with line breaks inside of quotes has several.
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; is it a CSV file?") from None


def _decoded(path: Path, data: bytes, mapping: Mapping) -> str:
    if data.startswith(b"PK\x03\x04"):
        raise UserError(f"{path} is a spreadsheet, or another packed file: save it as CSV")
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    encodings = (mapping.encoding,) if mapping.encoding else ("utf-16",) if utf16 else _ENCODINGS
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except (ValueError, LookupError):
            continue
    raise UserError(f"{path} is not text in {' or '.join(encodings)}: say its encoding in a mapping file")


def _delimiter(text: str) -> str:
    """What stands between the cells: what the first lines have the most of, each the same."""
    lines = [line for line in text.splitlines()[:_HEADER_LINES] if line.strip()]
    return max(_DELIMITERS, key=lambda delimiter: sum(line.count(delimiter) for line in lines))


def _header(path: Path, rows: Sequence[tuple[int, list[str]]], mapping: Mapping) -> tuple[int, dict[str, int]]:
    """The number of the header's line, and the place of each column that is known; above it may be a title."""
    for number, cells in rows[:_HEADER_LINES]:
        places = _places([_plain(cell) for cell in cells], mapping)
        if "amount" in places and places.keys() & {"task_id", "time"}:
            _check_one_amount(path, cells, mapping)
            return number, places
    wanted = ", ".join(f"{name} = {column!r}" for name, column in mapping.columns.items())
    raise UserError(
        f"{path}: no header with an amount and a task id or time{f' ({wanted})' if wanted else ''}: "
        "name its columns in a mapping file"
    )


def _places(header: Sequence[str], mapping: Mapping) -> dict[str, int]:
    places: dict[str, int] = {}
    for name, known in _KNOWN_NAMES.items():
        chosen = mapping.columns.get(name)  # pyright: ignore[reportArgumentType]
        candidates = (_plain(chosen),) if chosen else known
        place = next((header.index(candidate) for candidate in candidates if candidate in header), None)
        if place is not None and place not in places.values():
            places[name] = place
    return places


def _check_one_amount(path: Path, header: Sequence[str], mapping: Mapping) -> None:
    """Refuse to choose between a price and a total, or between credits and dollars, where none of them says USD."""
    named = [name.strip() for name in header if _plain(name) in _KNOWN_NAMES["amount"]]
    sure = [name for name in named if _plain(name) in _SURELY_DOLLARS]
    if "amount" not in mapping.columns and len(sure or named) > 1:
        raise UserError(
            f"{path}: its amounts may be in any of the columns {', '.join(map(repr, sure or named))}: "
            "say which in a mapping file, as amount under [columns]"
        )


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z\u0080-\uffff]", "", name.lower())


def _cell(cells: Sequence[str], place: int) -> str:
    return cells[place].strip() if place < len(cells) else ""


def _sums_up(task_id: str, cells: Sequence[str]) -> bool:
    """Whether a row is no charge but the sum of some; the word for that may stand in any column."""
    named = any(character.isdigit() for character in task_id)
    return not named and _SUMMARY.search(" ".join(cells)) is not None


def _decimal_point(path: Path, amounts: Sequence[str]) -> str:
    """Which of point and comma parts the cents, by all the amounts together."""
    commas = points = unclear = False
    for amount in amounts:
        comma, point = amount.rfind(","), amount.rfind(".")
        if comma >= 0 and point >= 0:
            commas |= comma > point
            points |= point > comma
        elif comma >= 0:
            # "1,234" may be either; "0,067" and "12,5" may not.
            clear = amount.count(",") == 1 and not re.search(r"[1-9]\d{0,2},\d{3}(?!\d)", amount)
            commas |= clear
            points |= amount.count(",") > 1
            unclear |= not clear and amount.count(",") == 1
        elif point >= 0:
            points |= amount.count(".") == 1
            commas |= amount.count(".") > 1
    if (commas and points) or (unclear and not (commas or points)):
        raise UserError(f"{path}: its amounts can be read in two ways: say decimal = '.' or ',' in a mapping file")
    return "," if commas else "."


def _amount(text: str, point: str, currency: str) -> Decimal | str:
    """An amount, or what is wrong with it."""
    if _plain(currency) not in _DOLLARS:
        return f"the amount is in {currency[:40]}, and not in US dollars"
    bare = re.sub(r"(?i)\s|US\$|USD|\$|['\u2019_]", "", text)
    negative = bare.startswith("(") and bare.endswith(")")
    bare = bare.strip("()")
    if bare.endswith("-"):
        bare = f"-{bare[:-1]}"
    bare = bare.replace("\u2212", "-").replace("," if point == "." else ".", "").replace(point, ".")
    try:
        value = Decimal(bare)
    except InvalidOperation:
        return f"the amount {text[:40]!r} is no number of dollars"
    if not value.is_finite() or abs(value) >= _MOST_USD:
        return f"the amount {text[:40]!r} is no number of dollars"
    return -value if negative else value


def _micros(value: Decimal, mapping: Mapping) -> int:
    return int((value * _UNITS[mapping.unit] / _MICRO).to_integral_value("ROUND_HALF_UP"))


def _half_of_last_digit(digits: int, mapping: Mapping) -> int:
    """In micro-dollars, at least the rounding of our own figures."""
    return max(1, int(Decimal(1).scaleb(-digits) * _UNITS[mapping.unit] / _MICRO / 2))


class _Times:
    """Reads times of one style; remembers whether any had a time of day."""

    def __init__(self, path: Path, mapping: Mapping) -> None:
        self._path = path
        self._format = mapping.time_format
        self.whole_days = True
        try:
            self.zone: tzinfo = UTC if mapping.time_zone.upper() == "UTC" else ZoneInfo(mapping.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):  # of a continent alone there is a folder
            raise UserError(f"there is no time zone {mapping.time_zone!r}: write it like Asia/Shanghai") from None

    def read(self, number: int, text: str) -> int | None:
        """Milliseconds since the epoch; None for nothing."""
        if not text:
            return None
        if _EPOCH.fullmatch(text):
            self.whole_days = False
            value = Decimal(text)
            return int(value if value >= _MILLISECONDS else value * 1000)
        moment = self._moment(number, text)
        self.whole_days &= re.search(r"\d:\d\d", text) is None
        return int(moment.timestamp() * 1000)

    def _moment(self, number: int, text: str) -> datetime:
        try:
            moment = (
                datetime.strptime(text, self._format)  # noqa: DTZ007 - the zone is added below
                if self._format
                else datetime.fromisoformat(text.replace("/", "-"))
            )
        except (ValueError, re.error):  # the second for a form that names the same part twice
            how = f"of the form {self._format}" if self._format else "ISO 8601; say time_format in a mapping file"
            raise UserError(f"{self._path}, line {number}: the time {text[:40]!r} is not {how}") from None
        if moment.year not in _YEARS:
            # Some programs write no time as the first of January of year 1, which has no day in other time zones.
            raise UserError(f"{self._path}, line {number}: the time {text[:40]!r} is none: clear or correct it")
        return moment if moment.tzinfo else moment.replace(tzinfo=self.zone)


def day_of(time: int, zone: tzinfo = UTC) -> date:
    """The day of a time in milliseconds."""
    return datetime.fromtimestamp(time / 1000, zone).date()


def by_task(lines: Sequence[InvoiceLine]) -> Iterator[tuple[str, list[InvoiceLine]]]:
    """The usable lines of each task, in order."""
    tasks: dict[str, list[InvoiceLine]] = {}
    for line in lines:
        if line.task_id is not None and line.amount_micros is not None:
            tasks.setdefault(line.task_id, []).append(line)
    yield from tasks.items()
