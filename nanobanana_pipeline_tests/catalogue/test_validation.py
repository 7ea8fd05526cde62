"""Telling good rows from bad ones."""
# pyarrow has no types of its own.
# pyright: reportUnknownParameterType=false

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue import occurrences, reading
from nanobanana_pipeline.catalogue.identity import Request, request_hash
from nanobanana_pipeline.catalogue.reading import CatalogueFile, CatalogueSource, find_catalogues
from nanobanana_pipeline.catalogue.rules import FILE_RULES, Rule
from nanobanana_pipeline.catalogue.validation import CataloguePrompt, RejectedPrompt, validate
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline_tests.catalogue.samples import (
    BAD_CELLS,
    SCHEMA,
    good_row,
    mixed_rows,
    write_mixed_catalogue,
    write_rows,
)

SPEC = load_spec()


def check(root: Path) -> tuple[list[CataloguePrompt], list[RejectedPrompt]]:
    """All prompts and rejections of the one catalogue under a root."""
    [source] = find_catalogues(str(root))
    batches = list(validate(source, SPEC))
    return [p for batch in batches for p in batch.prompts], [r for batch in batches for r in batch.rejected]


def check_columns(root: Path, **columns: Any) -> tuple[list[CataloguePrompt], list[RejectedPrompt]]:
    """As `check`, of a catalogue with the given columns; without prompts of its own it gets some."""
    rows = len(next(iter(columns.values())))
    prompts = pa.array([f"a fox, number {n}" for n in range(rows)])
    pq.write_table(pa.table({"prompt": prompts, **columns}), root / "spring.parquet")
    return check(root)


def rules(rejected: list[RejectedPrompt]) -> list[tuple[int | None, Rule, str | None]]:
    """Where which rule was broken."""
    return [(bad.row_number, bad.rule, bad.column_name) for bad in rejected]


def test_sixty_bad_rows_of_two_hundred(tmp_path: Path) -> None:
    """Every way to be bad is told by its own rule, and takes no good row with it."""
    catalogue = write_mixed_catalogue(tmp_path)
    prompts, rejected = check(tmp_path)
    assert len(BAD_CELLS) == len(rejected) == 60
    assert tuple(prompt.prompt_id for prompt in prompts) == catalogue.good
    assert {bad.row_number: (bad.rule, bad.column_name) for bad in rejected} == {
        number: (cell.rule, cell.column) for number, cell in catalogue.bad.items()
    }


def test_a_priority_is_a_whole_number_or_nothing(tmp_path: Path) -> None:
    """`high` or 1.5 would be an order of work that nobody asked for; a row without one is as urgent as most."""
    rows = [{"prompt": f"fox {n}", "priority": value} for n, value in enumerate([7, None, -3, 1.5, 1_000_001, -1e9])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "urgent.parquet")
    prompts, rejected = check(tmp_path)
    assert [prompt.priority for prompt in prompts] == [7, 0, -3]
    assert [(bad.row_number, bad.rule) for bad in rejected] == [(n, Rule.PRIORITY_OUT_OF_RANGE) for n in (4, 5, 6)]


@pytest.mark.parametrize("column", ["samples", "priority"])
def test_a_number_beyond_any_is_a_rejection_of_its_row(tmp_path: Path, column: str) -> None:
    """Of unsigned 64-bit numbers one beyond the signed ones ended the whole validation with a traceback."""
    prompts, rejected = check_columns(tmp_path, **{column: pa.array([2**64 - 1, 2, None], pa.uint64())})
    assert [(prompt.samples, prompt.priority) for prompt in prompts] == (
        [(2, 0)] if column == "samples" else [(1, 2)]
    ) + [(1, 0)]
    assert [bad.row_number for bad in rejected] == [1]


def test_rejections_can_be_acted_on(tmp_path: Path) -> None:
    """Who mends a catalogue of a million rows needs file, row, column, value and rule, on one line."""
    write_mixed_catalogue(tmp_path)
    for bad in check(tmp_path)[1]:
        assert bad.message.startswith(f"mixed.parquet, row {bad.row_number}, column {bad.column_name}: ")
        assert f"({bad.rule})" in bad.message
        assert bad.message.isprintable()
        assert len(bad.message) < 400
        assert bad.value is None or (len(bad.value) <= 210 and "\0" not in bad.value)


def test_values_are_shown_as_they_are(tmp_path: Path) -> None:
    """A blank at the end of a ratio is invisible unless it is quoted."""
    _, [bad] = check_columns(tmp_path, aspect_ratio=["16:9 "])
    assert '"16:9 " is not one of 1:8, 1:4' in bad.message
    assert bad.value == "16:9 "


def test_several_faults_of_a_row_are_told_at_once(tmp_path: Path) -> None:
    """Mending a row should not take one run for each of its faults."""
    _, [bad] = check_columns(tmp_path, aspect_ratio=["7:3"], resolution=["8K"], samples=[0])
    assert bad.rule is Rule.ASPECT_RATIO_UNKNOWN
    assert bad.message.endswith("also resolution_unknown in resolution; also samples_out_of_range in samples")


def test_prompt_only(tmp_path: Path) -> None:
    """The smallest catalogue there is: everything else has a default."""
    [prompt], rejected = check_columns(tmp_path, prompt=["a fox"])
    assert not rejected
    assert prompt.request == Request(model="nano_banana_2", prompt="a fox")
    assert prompt.request_hash == request_hash(prompt.request, SPEC)
    assert (prompt.catalogue, prompt.samples, prompt.campaign, prompt.labels) == ("spring", 1, None, None)
    assert prompt.prompt_id == f"auto-{prompt.request_hash[:16]}-1"


def test_limits_are_of_characters(tmp_path: Path) -> None:
    """2,500 foxes are 10,000 bytes and a valid prompt."""
    prompts, rejected = check_columns(tmp_path, prompt=["\N{FOX FACE}" * 2500, "x", "\N{FOX FACE}" * 2501])
    assert len(prompts) == 2
    assert rules(rejected) == [(3, Rule.PROMPT_TOO_LONG, "prompt")]
    assert "2501 characters" in rejected[0].message


def test_empty_is_absent(tmp_path: Path) -> None:
    """An empty cell means what a missing column means: another writer must not make another request."""
    empty = {"prompt_id": [""], "aspect_ratio": [""], "resolution": [""], "campaign": [""], "image_urls": [""]}
    [prompt], _ = check_columns(tmp_path, **empty, response_modalities=pa.array([[]], pa.list_(pa.string())))
    [plain], _ = check_columns(tmp_path, prompt=["a fox, number 0"])
    assert (prompt.request, prompt.prompt_id, prompt.campaign) == (plain.request, plain.prompt_id, None)


@pytest.mark.parametrize(
    "text",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_text_however_stored(tmp_path: Path, text: pa.DataType) -> None:
    """Polars, Spark, DuckDB and pandas store the same text in different types."""
    columns = {name: pa.array([value], text) for name, value in {"prompt_id": "x", "resolution": "2K"}.items()}
    [prompt], rejected = check_columns(tmp_path, prompt=pa.array(["a fox"], text), **columns)
    assert not rejected
    assert (prompt.prompt_id, prompt.request.prompt, prompt.request.resolution) == ("x", "a fox", "2K")


@pytest.mark.parametrize(
    "urls",
    [
        pa.array([["https://a.example/1", "https://a.example/2"], None, []], pa.list_(pa.string())),
        pa.array([["https://a.example/1", "https://a.example/2"], None, []], pa.large_list(pa.large_string())),
        pa.array([["https://a.example/1", "https://a.example/2"], None, []], pa.list_(pa.string_view())),
        pa.array(
            [["https://a.example/1", "https://a.example/2"], None, []],
            pa.list_(pa.dictionary(pa.int32(), pa.string())),
        ),
    ],
    ids=lambda array: str(array.type),
)
def test_lists_however_stored(tmp_path: Path, urls: pa.Array) -> None:
    """A list is a list, be its offsets wide or narrow."""
    prompts, rejected = check_columns(tmp_path, image_urls=urls)
    assert not rejected
    assert [p.request.image_urls for p in prompts] == [("https://a.example/1", "https://a.example/2"), (), ()]


def test_fixed_size_lists(tmp_path: Path) -> None:
    """numpy-minded writers make lists of one size."""
    urls = pa.array([["https://a.example/1", "https://a.example/2"]], pa.list_(pa.string(), 2))
    [prompt], rejected = check_columns(tmp_path, image_urls=urls)
    assert not rejected
    assert len(prompt.request.image_urls) == 2


def test_bare_text_is_a_list_of_one(tmp_path: Path) -> None:
    """Who has one picture to edit writes its URL, not a list."""
    prompts, rejected = check_columns(
        tmp_path, image_urls=["https://a.example/1", None, "nonsense"], response_modalities=["image", "", None]
    )
    assert [p.request.image_urls for p in prompts] == [("https://a.example/1",), ()]
    assert [p.request.response_modalities for p in prompts] == [("Image",), None]
    assert rules(rejected) == [(3, Rule.IMAGE_URL_INVALID, "image_urls")]


def test_modalities_are_spelt_the_providers_way(tmp_path: Path) -> None:
    """Spelling must not make two requests of one."""
    prompts, _ = check_columns(
        tmp_path, prompt=["a fox"] * 3, response_modalities=[["TEXT", "image"], ["Image", "Text", "IMAGE"], None]
    )
    assert [p.request.response_modalities for p in prompts] == [("Text", "Image"), ("Image", "Text"), None]
    assert len({p.request_hash for p in prompts}) == 1


@pytest.mark.parametrize("number", [pa.int8(), pa.uint64(), pa.int64(), pa.float32(), pa.float64()], ids=str)
def test_samples_however_stored(tmp_path: Path, number: pa.DataType) -> None:
    """Whole numbers become floats in pandas as soon as one cell is empty."""
    prompts, rejected = check_columns(tmp_path, samples=pa.array([2, None, 0, 7], number))
    assert [p.samples for p in prompts] == [2, 1, 7]
    assert rules(rejected) == [(3, Rule.SAMPLES_OUT_OF_RANGE, "samples")]


def test_samples_that_are_no_counts(tmp_path: Path) -> None:
    """Not-a-number is pandas' empty cell; half a picture and infinitely many are mistakes."""
    prompts, rejected = check_columns(tmp_path, samples=[float("nan"), 1.5, float("inf"), -float("inf"), 3.0])
    assert [p.samples for p in prompts] == [1, 3]
    assert [bad.value for bad in rejected] == ["1.5", "inf", "-inf"]


@pytest.mark.parametrize(
    ("column", "array", "says"),
    [
        ("prompt", pa.array([1]), "int64"),
        ("prompt", pa.array([b"a fox"]), "binary"),
        ("prompt", pa.array([["a fox"]]), "list"),
        ("prompt_id", pa.array([1]), "int64"),
        ("samples", pa.array(["two"]), "string"),
        ("samples", pa.array([True]), "bool"),
        ("image_urls", pa.array([[1]]), "list"),
        ("image_urls", pa.array([[["https://a.example/1"]]]), "list"),
        ("aspect_ratio", pa.array([16 / 9]), "double"),
        ("campaign", pa.array([{"name": "spring"}]), "struct"),
    ],
)
def test_wrong_column_type_is_one_rejection_of_the_file(
    tmp_path: Path, column: str, array: pa.Array, says: str
) -> None:
    """A column of another type is wrong in every row: say it once, and what it should be."""
    prompts, [bad] = check_columns(tmp_path, **{column: array})
    assert not prompts
    assert rules([bad]) == [(None, Rule.COLUMN_TYPE, column)]
    assert bad.message.startswith(f"spring.parquet, column {column}: its type is {says}")
    assert "must be" in bad.message


def test_columns_of_nulls_are_absent(tmp_path: Path) -> None:
    """An empty column has the type null, which fits everything; a prompt it can't be."""
    nulls = {name: pa.nulls(2) for name in SCHEMA.names if name != "prompt"}
    prompts, rejected = check_columns(tmp_path, **nulls)
    assert (len(prompts), rejected) == (2, [])
    prompts, rejected = check_columns(tmp_path, prompt=pa.nulls(2))
    assert rules(rejected) == [(1, Rule.PROMPT_MISSING, "prompt"), (2, Rule.PROMPT_MISSING, "prompt")]


def test_missing_prompt_column_names_the_columns_there_are(tmp_path: Path) -> None:
    """The column is usually there under another name."""
    pq.write_table(pa.table({"Prompt": ["a fox"], "id": [1]}), tmp_path / "spring.parquet")
    _, [bad] = check(tmp_path)
    assert rules([bad]) == [(None, Rule.MISSING_COLUMN, "prompt")]
    assert "Prompt, id" in bad.message


def test_column_there_twice(tmp_path: Path) -> None:
    """Which of two columns is meant is not for us to guess."""
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "spring.parquet")
    _, [bad] = check(tmp_path)
    assert rules([bad]) == [(None, Rule.DUPLICATE_COLUMN, "prompt")]


def test_bad_files_do_not_stop_the_others(tmp_path: Path) -> None:
    """A half-written file in a folder of a thousand costs its own rows and no more."""
    folder = tmp_path / "spring"
    write_rows(folder / "a.parquet", [good_row(1)])
    whole = write_rows(folder / "b.parquet", [good_row(n) for n in range(2, 200)]).read_bytes()
    (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "c.parquet").write_bytes(b"")
    pq.write_table(pa.table({"text": ["a fox"]}), folder / "d.parquet")
    write_rows(folder / "e.parquet", [good_row(500)])
    prompts, rejected = check(tmp_path)
    assert [prompt.prompt_id for prompt in prompts] == ["good-001", "good-500"]
    assert [(bad.file, bad.rule, bad.row_number) for bad in rejected] == [
        ("spring/b.parquet", Rule.UNREADABLE_FILE, None),
        ("spring/c.parquet", Rule.UNREADABLE_FILE, None),
        ("spring/d.parquet", Rule.MISSING_COLUMN, None),
    ]
    assert all(bad.rule in FILE_RULES for bad in rejected)
    assert all(bad.message.isprintable() for bad in rejected)


def test_damage_midway_keeps_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is good; what was not is told, with the row it ends at."""
    monkeypatch.setattr(reading, "_BATCH_ROWS", range(64, 64))
    path = tmp_path / "spring.parquet"
    rows = pa.table({"prompt": [f"fox {n} " + random.randbytes(50).hex() for n in range(256)]})
    pq.write_table(rows, path, row_group_size=64, compression="none", use_dictionary=False, write_page_checksum=True)
    torn = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    torn[start + 1000] ^= 255
    path.write_bytes(torn)
    prompts, [bad] = check(tmp_path)
    assert len(prompts) == 128
    assert bad.rule is Rule.UNREADABLE_FILE
    assert "after row 128" in bad.message


def test_catalogue_that_vanishes(tmp_path: Path) -> None:
    """Between the listing and the reading a file may go: a rejection, not a traceback."""
    gone = CatalogueFile(str(tmp_path / "gone.parquet"), "gone.parquet", 10, "1")
    [batch] = validate(CatalogueSource("gone", (gone,)), SPEC)
    assert rules(batch.rejected) == [(None, Rule.UNREADABLE_FILE, None)]
    assert "not there" in batch.rejected[0].message


def text_of_bytes(*values: bytes) -> pa.Array:
    """A column of text that may not be any."""
    return pa.array(values, pa.binary()).view(pa.string())


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    """Parquet does not check what it is given; an old Latin-1 export must not end the run."""
    prompts, rejected = check_columns(
        tmp_path,
        prompt=text_of_bytes(b"a fox", b"un renard \xe9", b"a hare", b"an owl"),
        prompt_id=["a", "b", "c", "d"],
        category=text_of_bytes(b"x", b"y", b"\xff", b"z"),
        tags=pa.ListArray.from_arrays([0, 1, 2, 3, 4], text_of_bytes(b"x", b"y", b"z", b"\xff")),
    )
    assert [prompt.prompt_id for prompt in prompts] == ["a"]
    assert rules(rejected) == [
        (2, Rule.TEXT_ENCODING, "prompt"),
        (3, Rule.TEXT_ENCODING, "category"),
        (4, Rule.TEXT_ENCODING, "tags"),
    ]
    assert [bad.prompt_id for bad in rejected] == ["b", "c", "d"]
    assert rejected[0].value == "un renard \ufffd"


def test_prompt_id_that_is_not_utf8(tmp_path: Path) -> None:
    """Even a row whose id can't be read is accounted for."""
    _, [bad] = check_columns(tmp_path, prompt_id=text_of_bytes(b"\xff1"))
    assert (bad.rule, bad.prompt_id) == (Rule.TEXT_ENCODING, "\ufffd1")


def test_further_columns_become_labels(tmp_path: Path) -> None:
    """Analysts group by columns of their own; pandas' index is none of them."""
    [prompt], _ = check_columns(tmp_path, category=["animals"], score=[0.5], tags=[["a", "b"]], __index_level_0__=[7])
    assert prompt.labels is not None
    assert json.loads(prompt.labels) == {"category": "animals", "score": 0.5, "tags": ["a", "b"]}


def test_duplicate_ids_across_files(tmp_path: Path) -> None:
    """A second row under one id would overwrite the first; who wrote it needs to know where the first one is."""
    write_rows(tmp_path / "spring" / "a.parquet", [good_row(1), good_row(2)])
    write_rows(tmp_path / "spring" / "b.parquet", [good_row(3), good_row(2), good_row(3)])
    prompts, rejected = check(tmp_path)
    assert [prompt.prompt_id for prompt in prompts] == ["good-001", "good-002", "good-003"]
    assert [(bad.file, bad.row_number, bad.rule) for bad in rejected] == [
        ("spring/b.parquet", 2, Rule.DUPLICATE_PROMPT_ID),
        ("spring/b.parquet", 3, Rule.DUPLICATE_PROMPT_ID),
    ]
    assert '"good-002" is taken by row 2 of spring/a.parquet' in rejected[0].message
    assert '"good-003" is taken by row 1 of spring/b.parquet' in rejected[1].message


def test_a_bad_row_keeps_its_id(tmp_path: Path) -> None:
    """Otherwise mending the first row would take the id away from the second, and pay for both again."""
    bad, good = good_row(1) | {"samples": 0}, good_row(1) | {"prompt": "another fox"}
    write_rows(tmp_path / "spring.parquet", [bad, good])
    prompts, rejected = check(tmp_path)
    assert not prompts
    assert [bad.rule for bad in rejected] == [Rule.SAMPLES_OUT_OF_RANGE, Rule.DUPLICATE_PROMPT_ID]


def test_identical_rows_without_id_are_separate_prompts(tmp_path: Path) -> None:
    """Deliberate duplicates are wanted; their ids count up in order, across files."""
    for name in ("a", "b"):
        write_rows(tmp_path / "spring" / f"{name}.parquet", [{"prompt": "a fox"}, {"prompt": "a hare"}])
    prompts, _ = check(tmp_path)
    assert [prompt.prompt_id.rsplit("-", 1)[1] for prompt in prompts] == ["1", "1", "2", "2"]
    assert len({prompt.prompt_id for prompt in prompts}) == 4


def test_derived_ids_do_not_depend_on_what_is_around(tmp_path: Path) -> None:
    """Inserting or deleting rows, labels and campaigns must not make anything be paid for again."""
    before, _ = check_columns(tmp_path, prompt=["a fox", "a hare", "an owl"])
    after, _ = check_columns(tmp_path, prompt=["an owl", "a crow", "a fox"], campaign=["x", "y", "z"], label=[1, 2, 3])
    assert {p.prompt_id for p in before} & {p.prompt_id for p in after} == {before[0].prompt_id, before[2].prompt_id}


def test_derived_id_that_somebody_has(tmp_path: Path) -> None:
    """A catalogue made from our own tables has our ids in it: still one prompt to an id."""
    [prompt], _ = check_columns(tmp_path, prompt=["a fox"])
    prompts, rejected = check_columns(tmp_path, prompt=["a hare", "a fox"], prompt_id=[prompt.prompt_id, None])
    assert len(prompts) == 1
    assert rules(rejected) == [(2, Rule.DUPLICATE_PROMPT_ID, "prompt_id")]


def test_batches_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row numbers, duplicates and derived ids are those of the catalogue, not of a batch."""
    rows, _ = mixed_rows()
    rows += [row | {"prompt_id": None} for row in rows]
    write_rows(tmp_path / "mixed.parquet", rows)
    at_once = check(tmp_path)
    monkeypatch.setattr(reading, "_BATCH_ROWS", range(7, 7))
    assert check(tmp_path) == at_once
    assert Counter(bad.rule for bad in at_once[1])[Rule.DUPLICATE_PROMPT_ID] == 4


def test_awkward_slices_and_nulls(tmp_path: Path) -> None:
    """Null lists with entries hidden below them are legal in Arrow, and must not shift their neighbours."""
    values = pa.array([f"https://a.example/{n}" for n in range(4)])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 3, 4]), values, mask=pa.array([False, True, False]))
    prompts, rejected = check_columns(tmp_path, image_urls=lists, response_modalities=[["Image"], None, ["bad"]])
    assert [p.request.image_urls for p in prompts] == [("https://a.example/0",), ()]
    assert rules(rejected) == [(3, Rule.MODALITY_UNKNOWN, "response_modalities")]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://EXAMPLE.COM/A.PNG",
        "https://user@example.com:8443/a/b.png?x=1&y=%20#top",
        "https://example.com?x=1",
        "https://[2001:db8::1]/a.png",
        "https://bücher.example/é.png",
        "https://192.0.2.1/a.png",
        "https://a_b.example/a@b,c;d.png",
    ],
)
def test_urls_that_are_fine(tmp_path: Path, url: str) -> None:
    """A rule too strict would keep good pictures out."""
    [prompt], _ = check_columns(tmp_path, image_urls=[[url]])
    assert prompt.request.image_urls == (url,)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a",
        "https://a b/c",
        "https://a.example/\u2028x",
        "https://a.example\\@evil.example/",
        "\uff48ttp://a",
    ],
)
def test_urls_that_are_not(tmp_path: Path, url: str) -> None:
    """A URL that two readers take for two things is refused before it is paid for."""
    prompts, _ = check_columns(tmp_path, image_urls=[[url]])
    assert not prompts


text = st.none() | st.text(max_size=8)
texts = st.none() | st.lists(text, max_size=4)
wild_rows = st.fixed_dictionaries(
    {
        "prompt_id": text,
        "prompt": text,
        "image_urls": texts | st.just(["https://a.example/1"]),
        "aspect_ratio": text | st.sampled_from(SPEC.aspect_ratios),
        "resolution": text | st.sampled_from(SPEC.resolutions),
        "response_modalities": texts | st.just(["Image"]),
        "samples": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(1, 3),
        "campaign": text,
        "category": text,
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(wild_rows, min_size=1, max_size=12))
def test_every_row_is_accounted_for(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Whatever is in a row, it is a prompt or a rejection, once; and a prompt is what its row says."""
    write_rows(tmp_path / "wild.parquet", rows)
    prompts, rejected = check(tmp_path)
    assert len(prompts) + len(rejected) == len(rows)
    numbers = [bad.row_number for bad in rejected]
    assert numbers == sorted(set(numbers), key=lambda n: n or 0)
    good = [row for number, row in enumerate(rows, start=1) if number not in numbers]
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts)
    for row, prompt in zip(good, prompts, strict=True):
        assert prompt.request.prompt == row["prompt"]
        assert prompt.request.image_urls == tuple(row["image_urls"] or ())
        assert prompt.request.resolution == (row["resolution"] or None)
        assert prompt.samples == (1 if row["samples"] is None else row["samples"])
        assert prompt.prompt_id == row["prompt_id"] or not row["prompt_id"]
        assert prompt.labels is not None
        assert json.loads(prompt.labels) == {"category": row["category"]}
        assert prompt.request_hash == request_hash(prompt.request, SPEC)


def test_memory_does_not_grow_with_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of a hundred million rows is read in the memory of one of a million."""
    monkeypatch.setattr(reading, "_BATCH_ROWS", range(64, 1024))
    monkeypatch.setattr(occurrences, "_LONGEST_RUN", 2048)

    def peak(rows: int) -> int:
        ids = pa.array(np.arange(rows)).cast(pa.string())
        pq.write_table(pa.table({"prompt": pa.array(["a fox"] * rows), "prompt_id": ids}), tmp_path / "big.parquet")
        [source] = find_catalogues(str(tmp_path))
        tracemalloc.start()
        assert sum(len(batch.prompts) for batch in validate(source, SPEC)) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(30_000) < 1.2 * peak(10_000)
