"""Catalogues made of CSV and XLSX files."""
# pyarrow has no types of its own.
# pyright: reportUnknownParameterType=false

import csv
import re
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue import importing
from nanobanana_pipeline.catalogue.importing import import_table
from nanobanana_pipeline.catalogue.reading import find_catalogues
from nanobanana_pipeline.catalogue.validation import validate
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.model_specs.loader import load_spec

CSV = """prompt_id,prompt,image_urls,response_modalities,samples,category
007,"A fox, asleep",https://a.example/1.png | https://a.example/2.png,"Text, Image",2,animals
,A hare,,,,
"""


def imported(tmp_path: Path, content: str | bytes, name: str = "spring.csv") -> pa.Table:
    """The catalogue made of a file with the given content."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return pq.read_table(import_table(path, tmp_path / "catalogue", overwrite=True).path)


def workbook(path: Path, *rows: list[Any]) -> Path:
    """A spreadsheet with the given rows."""
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_csv_becomes_a_catalogue(tmp_path: Path) -> None:
    """Leading zeros stay, lists are split, empty cells are null, further columns come along."""
    assert imported(tmp_path, CSV).to_pylist() == [
        {
            "prompt_id": "007",
            "prompt": "A fox, asleep",
            "image_urls": ["https://a.example/1.png", "https://a.example/2.png"],
            "response_modalities": ["Text", "Image"],
            "samples": 2,
            "category": "animals",
        },
        {
            "prompt_id": None,
            "prompt": "A hare",
            "image_urls": None,
            "response_modalities": None,
            "samples": None,
            "category": None,
        },
    ]


def test_imported_catalogue_is_valid(tmp_path: Path) -> None:
    """What import writes, validation takes."""
    imported(tmp_path, CSV)
    [source] = find_catalogues(str(tmp_path / "catalogue"))
    [batch] = validate(source, load_spec())
    assert source.name == "spring"
    assert batch.prompts[0].prompt_id == "007"
    assert not batch.rejected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_as_spreadsheets_write_it(tmp_path: Path, encoding: str, delimiter: str) -> None:
    """Excel puts a mark in front, and semicolons where the comma is a decimal point."""
    content = f'Prompt{delimiter}Aspect Ratio\r\n"a fox,\nasleep; \t"{delimiter}1:1\r\n\r\n'.encode(encoding)
    assert imported(tmp_path, content).to_pylist() == [{"prompt": "a fox,\nasleep; \t", "aspect_ratio": "1:1"}]


def test_xlsx_becomes_a_catalogue(tmp_path: Path) -> None:
    """Cells have types in a spreadsheet, and rows end where somebody stopped typing."""
    path = workbook(
        tmp_path / "spring.xlsx",
        ["Prompt ID", "prompt", "samples", "Image URLs", "due", "ready", None],
        [7, "a fox", 2.0, "https://a.example/1", datetime(2026, 5, 1), True, None],  # noqa: DTZ001
        [],
        ["x", "a hare"],
    )
    report = import_table(path, tmp_path)
    assert (report.rows, report.columns[:2]) == (2, ("prompt_id", "prompt"))
    first, second = pq.read_table(report.path).to_pylist()
    assert first == {
        "prompt_id": "7",
        "prompt": "a fox",
        "samples": 2,
        "image_urls": ["https://a.example/1"],
        "due": "2026-05-01T00:00:00",
        "ready": "true",
    }
    assert second["samples"] is None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text\na fox\n", "no column 'prompt'.*text"),
        ("a.csv", "", "no column 'prompt'.*empty"),
        ("a.csv", "prompt,prompt\na,b\n", "more than one column 'prompt'"),
        ("a.csv", "prompt,samples\na fox,two\n", "row 2, column samples: 'two' is not a whole number"),
        ("a.csv", "prompt,samples\n\na fox,1.5\n", "row 3, column samples"),
        ("a.csv", "prompt\na fox,1:1\n", "row 2.*column without a name"),
        ("a.csv", "prompt,\na fox,1:1\n", "row 2.*column without a name"),
        ("a.csv", 'prompt\n"a fox\n', "can't be read as CSV"),
        ("a.csv", "prompt\nun renard \xe9\n".encode("latin-1"), "CSV UTF-8"),
        ("a.csv", "prompt\na fox\n".encode("utf-16"), "CSV UTF-8"),
        ("a.xlsx", b"PK\x03\x04 no workbook", "can't be read as XLSX"),
        ("a.xlsx", b"", "can't be read as XLSX"),
        ("a.xls", b"", "neither .csv nor .xlsx"),
        ("_a.csv", "prompt\na fox\n", "passed over"),
    ],
)
def test_wrong_tables_are_one_clear_line(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    """Spreadsheets are made by hand; the row and the column save a search, and nothing half-made stays behind."""
    with pytest.raises(UserError, match=says):
        imported(tmp_path, content, name)
    assert not list(tmp_path.glob("catalogue/*"))
    assert not list(tmp_path.glob("catalogue/.*"))


def test_missing_table(tmp_path: Path) -> None:
    """A mistyped path is told as such."""
    with pytest.raises(UserError, match="No such file"):
        import_table(tmp_path / "gone.csv", tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        import_table(tmp_path / "folder.csv", tmp_path)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    """A catalogue is somebody's work."""
    path = tmp_path / "spring.csv"
    path.write_text("prompt\na fox\n")
    import_table(path, tmp_path / "named.parquet")
    with pytest.raises(UserError, match=r"named\.parquet is there already"):
        import_table(path, tmp_path / "named.parquet")
    path.write_text("prompt\na hare\n")
    import_table(path, tmp_path / "named.parquet", overwrite=True)
    assert pq.read_table(tmp_path / "named.parquet").column("prompt").to_pylist() == ["a hare"]


def test_failed_import_leaves_the_old_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target changes in one step or not at all, even when the bad row comes after many good ones."""
    monkeypatch.setattr(importing, "_ROWS_AT_A_TIME", 2)
    imported(tmp_path, "prompt,samples\na fox,1\n")
    with pytest.raises(UserError, match="row 6"):
        imported(tmp_path, "prompt,samples\n" + "a hare,1\n" * 4 + "an owl,x\n")
    kept = pq.read_table(tmp_path / "catalogue" / "spring.parquet")
    assert kept.column("prompt").to_pylist() == ["a fox"]
    assert [path.name for path in (tmp_path / "catalogue").iterdir()] == ["spring.parquet"]


def test_import_to_an_object_store(tmp_path: Path, bucket: str) -> None:
    """The catalogue root may be a URI; the import goes where the run will look."""
    path = tmp_path / "spring.csv"
    path.write_text("prompt\na fox\n")
    import_table(path, f"{bucket}/catalogue")
    assert [source.name for source in find_catalogues(f"{bucket}/catalogue")] == ["spring"]


def test_dates_with_a_zone_are_kept_as_text() -> None:
    """Cells keep what a person sees as far as text can."""
    assert importing._cell_text(datetime(2026, 5, 1, tzinfo=UTC)) == "2026-05-01T00:00:00+00:00"
    assert [importing._cell_text(cell) for cell in (None, False, 1.0, 1.5, "  ", " a ")] == [
        "",
        "false",
        "1",
        "1.5",
        "",
        " a ",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0\r", codec="utf-8"), min_size=1), min_size=1, max_size=5))
def test_prompts_survive_csv(tmp_path: Path, prompts: list[str]) -> None:
    """Quotes, commas and line breaks belong to a prompt."""
    path = tmp_path / "spring.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", "n"], *([prompt, n] for n, prompt in enumerate(prompts))])
    table = pq.read_table(import_table(path, tmp_path, overwrite=True).path)
    assert table.column("prompt").to_pylist() == [prompt if prompt.strip() else None for prompt in prompts]


@pytest.mark.parametrize("dimension", ["A1", "A1:XFD1048576"])
def test_a_sheet_that_is_wrong_about_its_size_is_read_in_full(tmp_path: Path, dimension: str) -> None:
    """Some programs write `A1` for any sheet: all but the first cell was left out, or the header was not found."""
    path = workbook(tmp_path / "spring.xlsx", ["prompt", "campaign"], ["A fox", "x"], ["A hare", "y"])
    other = tmp_path / "autumn.xlsx"
    with zipfile.ZipFile(path) as said, zipfile.ZipFile(other, "w") as says:
        for name in said.namelist():
            part = said.read(name).replace(b'<dimension ref="A1:B3"', f'<dimension ref="{dimension}"'.encode())
            says.writestr(name, part)
    assert other.read_bytes() != path.read_bytes()
    made = pq.read_table(import_table(other, tmp_path / "catalogue").path)
    assert made.to_pylist() == [{"prompt": "A fox", "campaign": "x"}, {"prompt": "A hare", "campaign": "y"}]


@pytest.mark.parametrize(("place", "cells"), [("B3", ["a fox", "=1+1"]), ("A3", ['="a fox"'])])
def test_a_formula_that_nobody_calculated_is_told(tmp_path: Path, place: str, cells: list[Any]) -> None:
    """A program's workbook holds no results: such rows were lost, such cells took a default, and nothing was said."""
    path = workbook(tmp_path / "spring.xlsx", ["prompt", "samples"], ["a hare", 2], cells)
    with pytest.raises(UserError, match=f"cell {place}: its formula was never calculated"):
        import_table(path, tmp_path / "catalogue")


def test_what_formulas_gave_is_taken(tmp_path: Path) -> None:
    """Nothing at all is a result, too; an error is none, and would have been paid for as a prompt."""
    assert calculated(tmp_path, 't="str"', "a fox").to_pylist() == [{"prompt": "a fox", "campaign": "spring"}]
    assert calculated(tmp_path, 't="str"', "").to_pylist() == [{"prompt": None, "campaign": "spring"}]
    with pytest.raises(UserError, match="cell A2: it holds the error #REF!"):
        calculated(tmp_path, 't="e"', "#REF!")


def calculated(tmp_path: Path, kind: str, result: str) -> pa.Table:
    """The catalogue made of a spreadsheet whose first prompt is a formula, with the result as spreadsheets keep it."""
    path = workbook(tmp_path / "written.xlsx", ["prompt", "campaign"], ["=B9&B2", "spring"])
    saved = tmp_path / "saved.xlsx"
    with zipfile.ZipFile(path) as said, zipfile.ZipFile(saved, "w") as says:
        for name in said.namelist():
            part = said.read(name).decode().replace('<c r="A2"', f'<c r="A2" {kind}')
            says.writestr(name, re.sub(r"</f><v\s*/?>(</v>)?", f"</f><v>{result}</v>", part))
    return pq.read_table(import_table(saved, tmp_path / "catalogue", overwrite=True).path)


def test_a_place_that_can_hold_no_catalogue_is_told_in_one_line(tmp_path: Path) -> None:
    """A mistake in NANOBANANA_CATALOGUE ended as a defect of ours."""
    (tmp_path / "spring.csv").write_text("prompt\nA fox\n")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", "nowhere://catalogues"):
        with pytest.raises(UserError, match="NANOBANANA_CATALOGUE"):
            import_table(tmp_path / "spring.csv", place)
