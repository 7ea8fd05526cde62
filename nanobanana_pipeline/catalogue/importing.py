"""Makes a Parquet catalogue of a CSV or XLSX file, a few thousand rows at a time.

Only the form changes here: lists are split, counts become numbers, empty cells become null. Whether the rows are any
good is `validation`'s to say, afterwards.
"""
# pyarrow and openpyxl have no types of their own.
# pyright: reportUnknownParameterType=false

import csv
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import islice
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from nanobanana_pipeline.catalogue.columns import KNOWN, REQUIRED, Kind
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.object_stores.opening import open_uri

_ROWS_AT_A_TIME = 10_000
_DELIMITERS = (",", ";", "\t")
_BETWEEN_ENTRIES = {"image_urls": re.compile(r"[\s|]+"), "response_modalities": re.compile(r"[\s|,]+")}
_TYPES = {Kind.TEXT: pa.string(), Kind.TEXTS: pa.list_(pa.string()), Kind.WHOLE: pa.int64()}

Row = tuple[int, list[str]]
"""A row's number as the spreadsheet counts (the header is row 1), and its cells; an empty cell is empty text."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import made: where, how many prompts, and of which columns."""

    path: str
    rows: int
    columns: tuple[str, ...]


def import_table(path: Path | str, destination: Path | str, *, overwrite: bool = False) -> ImportReport:
    """Make a catalogue of a `.csv` or `.xlsx` file (its first sheet) with a header row.

    `destination` is the `.parquet` file to write, or the folder (or fsspec URI) to write it in, under the table's name.
    Entries of a list are separated by blanks or `|`. Raises `UserError` for a table that can't be one catalogue.
    """
    source = Path(path)
    fs, target = _target(source, str(destination))
    if fs.exists(target) and not overwrite:
        raise UserError(f"{target} is there already: ask for it to be overwritten, or choose another name")
    with closing(_rows(source)) as rows:
        names = _column_names(source, next(rows, (1, []))[1])
        schema = pa.schema([(name, _TYPES[KNOWN.get(name, Kind.TEXT)]) for name in names if name])
        with _written_whole(fs, target) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            count = 0
            while chunk := list(islice(rows, _ROWS_AT_A_TIME)):
                writer.write_batch(_batch(source, names, chunk, schema))
                count += len(chunk)
    return ImportReport(path=target, rows=count, columns=tuple(schema.names))


def _target(source: Path, destination: str) -> tuple[AbstractFileSystem, str]:
    try:
        fs, target = open_uri(destination)
    except (ImportError, ValueError) as error:
        raise UserError(f"can't write a catalogue to {destination}: {error}; correct NANOBANANA_CATALOGUE") from None
    if not target.lower().endswith(".parquet"):
        target = f"{target.rstrip('/')}/{source.stem}.parquet"
    name = target.rsplit("/", 1)[-1]
    if name.startswith(("_", ".")):
        raise UserError(f"a catalogue called {name} would be passed over: choose a name without {name[0]!r} in front")
    return fs, target


def _rows(source: Path) -> Generator[Row]:
    readers: dict[str, Callable[[Path], Iterator[list[str]]]] = {".csv": _csv_rows, ".xlsx": _xlsx_rows}
    read = readers.get(source.suffix.lower())
    if read is None:
        raise UserError(f"{source} is neither .csv nor .xlsx: save it as one of these")
    try:
        for number, cells in enumerate(read(source), start=1):
            if any(cells):
                yield number, cells
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"can't read {source}: {error.strerror or error}; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f'{source} is not UTF-8 text: save it as "CSV UTF-8"') from None
    except Exception as error:  # noqa: BLE001 (a torn workbook raises nearly anything)
        raise UserError(f"{source} can't be read as {source.suffix.lower()[1:].upper()}: {error}") from None


def _csv_rows(source: Path) -> Iterator[list[str]]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        delimiter = _delimiter(file.readline())
        file.seek(0)
        for cells in csv.reader(file, delimiter=delimiter, strict=True):
            yield [cell.strip() and cell for cell in cells]


def _delimiter(header: str) -> str:
    """The one that tells a `prompt` column; Excel writes semicolons where the comma is a decimal point."""
    for delimiter in _DELIMITERS:
        if REQUIRED in map(_column_name, next(csv.reader([header], delimiter=delimiter), [])):
            return delimiter
    return _DELIMITERS[0]


def _xlsx_rows(source: Path) -> Iterator[list[str]]:
    with warnings.catch_warnings():
        # openpyxl warns of styles and validations that it leaves out: they are nothing to us.
        warnings.simplefilter("ignore")
        calculated = _sheet_rows(source, data_only=True, values_only=False)
        written = _sheet_rows(source, data_only=False, values_only=True)
        with closing(calculated), closing(written):
            for cells, formulas in zip(calculated, written, strict=True):
                for cell, formula in zip(cells, formulas, strict=True):
                    _check_calculated(source, cell, formula)
                yield [_cell_text(cell.value) for cell in cells]


def _sheet_rows(source: Path, *, data_only: bool, values_only: bool) -> Generator[tuple[Any, ...]]:
    """The rows of the first sheet: with what its formulas gave, or (not `data_only`) with the formulas."""
    with closing(openpyxl.load_workbook(source, read_only=True, data_only=data_only)) as workbook:
        sheet = workbook.worksheets[0]
        # A writer may say that the sheet is A1 alone, or as wide as can be; the rows themselves know better.
        sheet.reset_dimensions()
        yield from sheet.iter_rows(values_only=values_only)


def _check_calculated(source: Path, cell: Any, formula: Any) -> None:
    if cell.data_type == "e":
        raise UserError(f"{source}, cell {cell.coordinate}: it holds the error {cell.value}; correct it")
    # Programs that write workbooks leave out what a formula gives, and its row would be lost, or made with a default.
    # One that gives an empty text is told apart by its type.
    if cell.value is None and formula is not None and cell.data_type == "n":
        raise UserError(
            f"{source}, cell {cell.coordinate}: its formula was never calculated; open the file in a spreadsheet "
            "program and save it"
        )


def _cell_text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    text = str(cell)
    return text if text.strip() else ""


def _column_names(source: Path, header: list[str]) -> list[str]:
    names = [_column_name(cell) for cell in header]
    given = [name for name in names if name]
    if REQUIRED not in given:
        raise UserError(f"{source} has no column {REQUIRED!r} in its first row ({', '.join(given) or 'empty'}): add it")
    for name in given:
        if given.count(name) > 1:
            raise UserError(f"{source} has more than one column {name!r}: rename or drop one")
    return names


def _column_name(cell: str) -> str:
    """A header's name: our own columns may be written as people write them, such as "Image URLs"."""
    own = re.sub(r"[\s-]+", "_", cell.strip().lower())
    return own if own in KNOWN else cell.strip()


def _batch(source: Path, names: list[str], rows: list[Row], schema: pa.Schema) -> pa.RecordBatch:
    for number, cells in rows:
        if any(cells[i] for i in range(len(cells)) if i >= len(names) or not names[i]):
            raise UserError(f"{source}, row {number}: there is a value in a column without a name; name or clear it")
    columns = {
        name: [_value(source, number, name, cells[i] if i < len(cells) else "") for number, cells in rows]
        for i, name in enumerate(names)
        if name
    }
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def _value(source: Path, number: int, name: str, cell: str) -> str | list[str] | int | None:
    if not cell:
        return None
    if name in _BETWEEN_ENTRIES:
        return [entry for entry in _BETWEEN_ENTRIES[name].split(cell) if entry]
    if KNOWN.get(name) is Kind.WHOLE:
        if not re.fullmatch(r"\s*[+-]?\d{1,18}(\.0*)?\s*", cell):
            raise UserError(f"{source}, row {number}, column {name}: {cell[:40]!r} is not a whole number; correct it")
        return int(cell.split(".", maxsplit=1)[0])
    return cell


@contextmanager
def _written_whole(fs: AbstractFileSystem, target: str) -> Generator[str]:
    """A path to write to; the target appears when all is written, and not at all when something fails."""
    local = isinstance(fs, LocalFileSystem)
    folder = Path(target).parent if local else None
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{folder} is no folder: set NANOBANANA_CATALOGUE to the one for your catalogues") from None
    # In the target's own folder, so that the last step is a rename; hidden, so that nobody takes it for a catalogue.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".importing-") as beside:
        temporary = Path(beside, "catalogue.parquet")
        yield str(temporary)
        if local:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
        else:
            fs.put_file(str(temporary), target)
