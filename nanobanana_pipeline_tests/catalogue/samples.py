"""Catalogues to test with: one of 200 rows, 60 of them bad in every way a row can be, each with the rule it breaks."""
# pyarrow has no types of its own.
# pyright: reportUnknownParameterType=false

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanobanana_pipeline.catalogue.rules import Rule
from nanobanana_pipeline.model_specs.loader import load_spec

ROWS = 200
SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": pa.string(),
        "image_urls": pa.list_(pa.string()),
        "aspect_ratio": pa.string(),
        "resolution": pa.string(),
        "response_modalities": pa.list_(pa.string()),
        "samples": pa.int64(),
        "campaign": pa.string(),
        "category": pa.string(),
    }
)
_SPEC = load_spec()
_URL = "https://example.com/a.png"


@dataclass(frozen=True)
class BadCell:
    """A cell that makes a row bad, and the rule that says so."""

    rule: Rule
    column: str
    value: Any


def _bad(rule: Rule, column: str, *values: Any) -> list[BadCell]:
    return [BadCell(rule, column, value) for value in values]


BAD_CELLS: tuple[BadCell, ...] = (
    *_bad(Rule.PROMPT_MISSING, "prompt", None, "", " ", "\n\t ", "\u3000\u00a0", "\u200b"),
    *_bad(Rule.PROMPT_TOO_LONG, "prompt", "a" * 2501, "\N{FOX FACE}" * 2501, "word " * 2000),
    *_bad(Rule.NUL_CHARACTER, "prompt", "a fox\0in the snow"),
    *_bad(Rule.NUL_CHARACTER, "prompt_id", "fox\0one"),
    *_bad(Rule.NUL_CHARACTER, "campaign", "spring\0"),
    *_bad(Rule.DUPLICATE_PROMPT_ID, "prompt_id", "good-000", "good-000", "good-001", "good-003"),
    *_bad(Rule.IMAGE_URLS_TOO_MANY, "image_urls", [_URL] * 4, [_URL] * 50),
    *_bad(
        Rule.IMAGE_URL_INVALID,
        "image_urls",
        ["ftp://example.com/a.png"],
        ["s3://bucket/a.png"],
        ["file:///etc/passwd"],
        ["data:image/png;base64,AAAA"],
        ["javascript:alert(1)"],
        ["example.com/a.png"],
        ["//example.com/a.png"],
        ["https://"],
        ["https:///a.png"],
        ["http://:80/a.png"],
        ["https://exam ple.com/a.png"],
        ["https://example.com/a b.png"],
        [" https://example.com/a.png"],
        ["https://example.com/a.png\n"],
        ["https://example.com/" + "a" * 9000],
        [""],
        [None],
        [_URL, "not a URL"],
    ),
    *_bad(
        Rule.ASPECT_RATIO_UNKNOWN, "aspect_ratio", "7:3", "16x9", "16:10", "1:1 ", "0:0", "square", "1.78", "\uff19:16"
    ),
    *_bad(Rule.RESOLUTION_UNKNOWN, "resolution", "8K", "1k", "2 K", "1024", "0,5K", "auto"),
    *_bad(Rule.MODALITY_UNKNOWN, "response_modalities", ["Video"], ["Image", "Audio"], ["Image, Text"], [None]),
    *_bad(Rule.IMAGE_MODALITY_MISSING, "response_modalities", ["Text"], ["text", "TEXT"]),
    *_bad(Rule.SAMPLES_OUT_OF_RANGE, "samples", 0, -1, 1001, 2**63 - 1),
)


@dataclass(frozen=True)
class MixedCatalogue:
    """A written catalogue: the prompt ids of its good rows, and its bad cells by row number (from 1)."""

    path: Path
    good: tuple[str, ...]
    bad: Mapping[int, BadCell]


def good_row(n: int) -> dict[str, Any]:
    """The `n`-th good row; all options of the model come up among the first few dozen."""
    return {
        "prompt_id": f"good-{n:03d}",
        "prompt": "\N{FOX FACE}" * 2500 if n == 7 else f"A paper fox, number {n}, folded from a page of an old atlas",
        "image_urls": [f"https://example.com/reference-{k}.png" for k in range(n % 4)] if n % 5 == 0 else None,
        "aspect_ratio": [None, "", *_SPEC.aspect_ratios][n % 16],
        "resolution": [None, *_SPEC.resolutions][n % 5],
        "response_modalities": [None, [], ["Image"], ["Text", "Image"], ["image", "TEXT"]][n % 5],
        "samples": None if n % 3 else 1,
        "campaign": [None, "spring", "autumn"][n % 3],
        "category": ["animals", "still life", None][n % 3],
    }


def mixed_rows() -> tuple[list[dict[str, Any]], dict[int, BadCell]]:
    """200 rows, and the bad cells among them by row number: three rows in every ten."""
    rows: list[dict[str, Any]] = []
    bad: dict[int, BadCell] = {}
    cells = iter(BAD_CELLS)
    for n in range(ROWS):
        row = good_row(n - len(bad))
        if n % 10 in {5, 7, 9}:
            cell = next(cells)
            row |= {"prompt_id": f"bad-{len(bad):02d}", cell.column: cell.value}
            bad[n + 1] = cell
        rows.append(row)
    return rows, bad


def write_mixed_catalogue(folder: Path, name: str = "mixed") -> MixedCatalogue:
    """Write the 200 rows as the catalogue `name` of a catalogue root."""
    rows, bad = mixed_rows()
    path = write_rows(folder / f"{name}.parquet", rows)
    good = tuple(row["prompt_id"] for n, row in enumerate(rows, start=1) if n not in bad)
    return MixedCatalogue(path, good, bad)


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    """Write rows as a Parquet file, in row groups small enough to make more than one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema or SCHEMA), path, row_group_size=64)
    return path
