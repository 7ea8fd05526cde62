"""From the ledger to the tables: a shard's rows of `results`, `images` and `attempts`, and a catalogue's `prompts`.

Tables are derived and never added to: the version is pinned, then the ledger is read, then the rows are replaced
against that version. A writer that lost the race reads the ledger again, so the last rows written are never older than
the first.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, Final

import orjson
import pyarrow as pa

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.evidence import refuse_older_ledger
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import statement
from nanobanana_pipeline.ledger.statement import ItemStatement
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline.storage.schemas import SCHEMAS
from nanobanana_pipeline.storage.tables import Conflict

_TRIES: Final = 20
_BATCH_ROWS: Final = 500
"""Rows that are Python's own objects, at some 5 kB each, at once: several shards may end together."""

STATUS_OF: Final[dict[ItemState, str]] = {
    ItemState.PENDING: "pending",
    ItemState.OPEN: "in_flight",
    ItemState.UNKNOWN: "unknown",
    ItemState.OVERDUE: "unknown",
    ItemState.DONE: "succeeded",
    ItemState.FAILED: "failed",
    ItemState.DEFERRED: "deferred",
}

Row = dict[str, Any]


def publish_shard(workspace: Workspace, shard: str) -> None:
    """Write a shard's rows of `attempts`, `images` and `results` as the ledger has them now.

    `results` comes last: who sees an item there finds its images and attempts as well. Raises `UserError`, with nothing
    changed, when the ledger is older than the tables.
    """
    refuse_older_ledger(workspace, [shard])

    def read() -> dict[str, Iterable[Row]]:
        with workspace.ledger.database.read() as connection:
            items, attempts = statement.shard_statement(connection, shard)
        return {
            "attempts": map(attempt_row, attempts),
            "images": (row for item in items for row in image_rows(item)),
            "results": map(result_row, items),
        }

    _replace(workspace, ("attempts", "images", "results"), {"shard": shard}, read)


def publish_prompts(workspace: Workspace, catalogue: str) -> None:
    """Write a catalogue's rows of `prompts` as the ledger has them now."""

    def rows() -> Iterable[Row]:
        with workspace.ledger.database.read() as connection:
            yield from map(prompt_row, statement.prompts(connection, catalogue))

    replace_rows(workspace, "prompts", {"catalogue": catalogue}, rows)


def replace_rows(workspace: Workspace, name: str, where: dict[str, str], make: Callable[[], Iterable[Row]]) -> None:
    """Replace a table's rows `where` the columns have these values by those that `make` reads, in one commit.

    `make` is called again when another writer was there first. Rows pass through in batches: memory does not grow with
    them.
    """
    _replace(workspace, (name,), where, lambda: {name: make()})


def _replace(
    workspace: Workspace, names: Sequence[str], where: dict[str, str], read: Callable[[], dict[str, Iterable[Row]]]
) -> None:
    """The same for several tables by one reading of the ledger, in the order of their names."""
    tables = workspace.tables
    for _ in range(_TRIES):
        # All versions before the reading: no writer that read later can have come between.
        versions = {name: tables.version(name) for name in names}
        rows = read()
        try:
            for name in names:
                tables.replace(name, to_batches(name, rows[name]), where, expected_version=versions[name])
        except Conflict:
            # From the first table on: rows of `results` that were read later than those of `images` may lack theirs.
            continue
        return
    raise RuntimeError(f"tables {', '.join(names)} kept changing under {_TRIES} tries to write {where or 'all of it'}")


def to_batches(name: str, rows: Iterable[Row]) -> pa.RecordBatchReader:
    """Rows as a stream of record batches with the table's columns; a missing value is null."""
    schema = SCHEMAS[name]

    def batches() -> Iterator[pa.RecordBatch]:
        remaining = iter(rows)
        while chunk := list(islice(remaining, _BATCH_ROWS)):
            columns = [pa.array([row.get(field.name) for row in chunk], type=field.type) for field in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def usd(micros: int | None) -> Decimal | None:
    """Micro-dollars as an exact Decimal of dollars."""
    return None if micros is None else Decimal(micros).scaleb(-6)


def _instant(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds * 1000


def result_row(entry: ItemStatement) -> Row:
    """A row of `results`."""
    item, attempt = entry.item, entry.attempt
    request = Request.from_json(item.body)
    row: Row = {
        "item_id": item.item_id,
        "catalogue": item.catalogue,
        "shard": item.shard,
        "prompt_id": item.prompt_id,
        "sample": item.sample,
        "active": bool(item.active),
        "campaign": item.campaign,
        "labels": item.labels,
        "prompt": request.prompt,
        "model": item.model,
        "aspect_ratio": request.aspect_ratio,
        "resolution": item.resolution,
        "image_urls": _json(request.image_urls),
        "response_modalities": _json(request.response_modalities),
        "status": STATUS_OF[ItemState(item.state)],
        "attempts": item.attempts,
        "polls": 0,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "total_tokens": entry.total_tokens,
        "cost_usd": usd(entry.cost_micros),
        "at_risk_usd": usd(entry.at_risk_micros),
        "error_message": item.note,
        "image_count": 0,
    }
    if attempt is None:
        return row
    images = _images(entry)
    row |= {
        "task_id": attempt.task_id,
        "polls": attempt.polls,
        "submitted_at": _instant(attempt.submitted_at),
        "completed_at": _instant(attempt.completed_at),
        "stored_at": _instant(attempt.stored_at),
        "latency_s": _seconds_between(attempt.submitted_at, attempt.completed_at),
        "cost_source": attempt.cost_source,
        "error_kind": attempt.error_kind,
        "error_code": attempt.error_code,
        "error_message": item.note or attempt.error_message,
        "text": attempt.text,
        "image_count": len(images),
        "image_path": images[0]["path"] if images else None,
        "metadata": attempt.metadata,
        "run_id": attempt.run_id,
    }
    return row


def image_rows(entry: ItemStatement) -> list[Row]:
    """An item's rows of `images`: its current files, none for an item whose current request has no image yet."""
    item = entry.item
    identity = {name: getattr(item, name) for name in ("item_id", "catalogue", "shard", "prompt_id", "sample")}
    return [identity | image for image in _images(entry)]


def attempt_row(attempt: Any) -> Row:
    """A row of `attempts`."""
    times = ("created_at", "submitted_at", "completed_at", "stored_at", "closed_at")
    return {
        **{name: getattr(attempt, name) for name in _PLAIN_ATTEMPT_COLUMNS},
        **{name: _instant(getattr(attempt, name)) for name in times},
        "reserved_usd": usd(attempt.reserved_micros),
        "cost_usd": usd(attempt.cost_micros),
        "at_risk_usd": usd(attempt.at_risk_micros),
    }


def prompt_row(row: Any) -> Row:
    """A row of `prompts`."""
    request = Request.from_json(row.body)
    return {
        "catalogue": row.catalogue,
        "prompt_id": row.prompt_id,
        "samples": row.samples,
        "shard": row.shard,
        "prompt": request.prompt,
        "image_urls": _json(request.image_urls),
        "aspect_ratio": request.aspect_ratio,
        "resolution": row.resolution,
        "response_modalities": _json(request.response_modalities),
        "model": request.model,
        "campaign": row.campaign,
        "labels": row.labels,
        "request_hash": row.request_hash,
        "active": bool(row.active),
        "priority": row.priority,
    }


_PLAIN_ATTEMPT_COLUMNS = (
    "attempt_id",
    "item_id",
    "catalogue",
    "shard",
    "prompt_id",
    "sample",
    "campaign",
    "model",
    "resolution",
    "attempt",
    "state",
    "first_status",
    "task_id",
    "request_hash",
    "polls",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cost_source",
    "price_version",
    "error_kind",
    "error_code",
    "error_message",
    "run_id",
    "plan_hash",
)


def _images(entry: ItemStatement) -> list[Row]:
    attempt = entry.attempt
    if attempt is None or attempt.state != AttemptState.STORED or not attempt.images:
        return []
    return orjson.loads(attempt.images)


def _json(values: tuple[str, ...] | None) -> str | None:
    return orjson.dumps(values).decode() if values else None


def _seconds_between(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1000
