"""The data dictionary of docs/tables.md, made from the schemas: `python -m nanobanana_pipeline.storage.dictionary`.

What is above the dictionary's mark in that page is written by hand. What the columns are is in `schemas`.
"""

import sys
from pathlib import Path
from typing import Final

import pyarrow as pa

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.storage.schemas import SCHEMAS, description_of

PAGE: Final = Path("docs/tables.md")
MARK: Final = "<!-- made by `python -m nanobanana_pipeline.storage.dictionary` from here on -->"

_TYPES: Final = {
    "string": "text",
    "bool": "boolean",
    "int32": "integer (32 bits)",
    "int64": "integer (64 bits)",
    "double": "double",
    "date32[day]": "date",
    "timestamp[us, tz=UTC]": "timestamp (µs, UTC)",
    "decimal128(18, 6)": "decimal(18, 6)",
}


def dictionary() -> str:
    """Every table and column, as Markdown."""
    return "\n".join(_section(name, schema) for name, schema in SCHEMAS.items())


def with_dictionary(page: str) -> str:
    """`page` with what is below its mark made anew."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise UserError(f"{PAGE} has lost the line {MARK}: put it back where the dictionary should begin")
    return f"{head}{MARK}\n\n{dictionary()}"


def _section(name: str, schema: pa.Schema) -> str:  # pyright: ignore[reportUnknownParameterType]
    lines = [f"## {name}", "", description_of(schema), "", "| column | type | meaning |", "| --- | --- | --- |"]
    # A bar would end the cell.
    lines += (
        f"| `{field.name}` | {_TYPES[str(field.type)]} | {description_of(field).replace('|', '&#124;')} |"
        for field in schema
    )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(with_dictionary(page.read_text()))
