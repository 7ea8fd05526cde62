"""Rows and a stand-in for the ledger, for the tests of this folder."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from nanobanana_pipeline.storage.schemas import SCHEMAS


def results(shard: str, count: int = 3, mark: str = "", **columns: Any) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
    """`count` rows of the table `results` for one shard; `mark` tells one writing from another."""
    return rows(
        "results",
        count,
        item_id=[f"{shard}/{i}" for i in range(count)],
        catalogue=shard.rpartition("-")[0] or shard,
        shard=shard,
        prompt_id=[f"p{i}" for i in range(count)],
        sample=1,
        active=True,
        prompt=[f"a cat, number {i}" for i in range(count)],
        run_id=mark,
        status="succeeded",
        cost_usd=Decimal("0.067200"),
        submitted_at=datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC),
        **columns,
    )


def rows(name: str, count: int, **columns: Any) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
    """`count` rows of a table; a value that is not a list stands in every row."""
    filled = {key: value if isinstance(value, list) else [value] * count for key, value in columns.items()}
    schema = pa.schema([SCHEMAS[name].field(key) for key in filled])
    return pa.table(filled, schema=schema)
