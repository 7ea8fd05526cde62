"""What the user interface shows beside assets, runs and checks: column schemas, row counts, money, small tables.

How numbers are shown belongs here; what they are is reckoned by `reporting` and `generation`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import dagster as dg
import pyarrow as pa

from nanobanana_pipeline.ledger.budget import usd
from nanobanana_pipeline.reporting.glance import cell
from nanobanana_pipeline.storage.schemas import SCHEMAS, description_of
from nanobanana_pipeline.storage.tables import Tables

Metadata = dict[str, Any]

MODE: Final = "mode"
"""Says `simulated` or `live` on every materialisation."""

_ROWS_SHOWN: Final = 50


def table_definition(name: str) -> Metadata:
    """What is known of a table before it is written: its columns, with types and meanings."""
    columns = [
        dg.TableColumn(
            field.name,
            str(field.type),
            description=description_of(field),
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for field in SCHEMAS[name]
    ]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


def table_state(tables: Tables, name: str, *, shard_rows: int | None = None) -> Metadata:
    """Where a table is and how many rows it has, `shard_rows` of them in the partition that was written."""
    state: Metadata = {"dagster/row_count": rows_in(tables, name), "table": dg.MetadataValue.path(tables.uri(name))}
    if shard_rows is not None:
        state["dagster/partition_row_count"] = shard_rows
    return state


def rows_in(tables: Tables, name: str) -> int:
    """The rows of a table, from its log alone."""
    delta = tables.open(name)
    if delta is None:
        return 0
    counts: list[int] = pa.table(delta.get_add_actions(flatten=True))["num_records"].to_pylist()
    return sum(counts)


def money(name: str, micros: int) -> Metadata:
    """An amount twice: as a number, which Dagster plots, and to the micro-dollar, which a float is not."""
    return {f"{name}_usd": dg.MetadataValue.float(micros / 1_000_000), f"{name}_usd_exact": usd(micros)}


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: int = 1
) -> dg.MarkdownMetadataValue:
    """A small table, its last `numbers` columns to the right; what comes after 50 rows is only counted."""
    listed = list(rows)
    if not listed:
        return dg.MetadataValue.md("none")
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    lines = [header, rule, *(list(map(_shown, row)) for row in listed[:_ROWS_SHOWN])]
    more = [f"\nand {len(listed) - _ROWS_SHOWN:,} more"] if len(listed) > _ROWS_SHOWN else []
    return dg.MetadataValue.md("\n".join([*(f"| {' | '.join(line)} |" for line in lines), *more]))


def counts_table(header: tuple[str, str], counts: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """Counts by name, the largest first."""
    return markdown_table(header, sorted(counts.items(), key=lambda entry: -entry[1]))


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else cell("" if value is None else str(value))
