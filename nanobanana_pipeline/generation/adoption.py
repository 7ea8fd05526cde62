"""Taking over into the ledger what only the tables show: after the ledger was lost, or set back to an older copy.

Costs nothing, and afterwards nothing is paid for again: an item with its image is done, a task that is open is asked
about, and every cent counts on its day and catalogue as it did. How it is entered is `ledger.adoption`'s business.
"""

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final

import orjson

from nanobanana_pipeline.catalogue.identity import Request, request_hash
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.evidence import attempts_ahead
from nanobanana_pipeline.generation.mending import repair_tables
from nanobanana_pipeline.generation.publishing import STATUS_OF, publish_shard
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import adoption
from nanobanana_pipeline.ledger.adoption import Adopted, ShownItem
from nanobanana_pipeline.ledger.entries import Cause
from nanobanana_pipeline.ledger.shard_facts import shards_at_work
from nanobanana_pipeline.ledger.states import AttemptState, ItemState

Row = dict[str, Any]

_NOBODY: Final = "adopted"
"""The owner of what is taken over: it has no lease, so the next run finishes what is open."""
_IDENTITY: Final = ("item_id", "catalogue", "prompt_id", "sample", "shard")
_FACTS: Final = (
    *("attempt_id", "item_id", "attempt", "catalogue", "prompt_id", "sample", "campaign", "model", "resolution"),
    *("request_hash", "run_id", "first_status", "task_id", "polls", "prompt_tokens", "completion_tokens"),
    *("total_tokens", "cost_source", "price_version", "error_kind", "error_code", "error_message"),
)
_TIMES: Final = ("created_at", "submitted_at", "completed_at", "stored_at", "closed_at")
_STATE_OF: Final = {status: state for state, status in reversed(STATUS_OF.items())}


def adopt_tables(workspace: Workspace) -> Adopted:
    """Enter every item and attempt that the tables show and the ledger lacks, and write their shards anew.

    Raises `UserError`, with nothing entered, while a run is at work: what it has in the air is not in the tables yet.
    """
    _refuse_beside_a_run(workspace)
    adopted = Adopted()
    repair_tables(workspace)
    shards = {
        shard
        for name in ("results", "attempts")
        for shard in workspace.tables.read(name, ["shard"]).column("shard").unique().to_pylist()
    }
    for shard in sorted(shards):
        shown = _shown(workspace, shard)
        catalogue: str = shown[0].item["catalogue"]
        # Beside a registration both would give out the same places, or it would enter anew what is here by now.
        with workspace.ledger.entering(catalogue):
            enter = partial(adoption.adopt, workspace.ledger.database, shard=shard, shown=shown)
            adopted.add(workspace.ledger.post_alone(enter))
    for shard in sorted(adopted.shards):
        publish_shard(workspace, shard)
    return adopted


def _refuse_beside_a_run(workspace: Workspace) -> None:
    with workspace.ledger.database.read() as connection:
        busy = sorted(shards_at_work(connection, workspace.ledger.database.now(connection)))
    if busy:
        others = f" and {len(busy) - 1} more" if len(busy) > 1 else ""
        raise UserError(
            f"a run is at work on shard {busy[0]}{others}, and adopting needs the ledger for itself: stop it or wait "
            "for its end (nanobanana status shows who it is), then adopt"
        )


def _shown(workspace: Workspace, shard: str) -> list[ShownItem]:
    """The shard's items as the tables show them."""
    ahead = set(attempts_ahead(workspace, shard))
    attempts: defaultdict[str, list[Row]] = defaultdict(list)
    for row in workspace.tables.read("attempts", predicate={"shard": shard}).to_pylist():
        attempts[row["item_id"]].append(row)
    images: defaultdict[str, list[Row]] = defaultdict(list)
    for row in workspace.tables.read("images", predicate={"shard": shard}).to_pylist():
        images[row["item_id"]].append({name: value for name, value in row.items() if name not in _IDENTITY})
    results = workspace.tables.read("results", predicate={"shard": shard}).to_pylist()
    unnamed = attempts.keys() - {row["item_id"] for row in results}
    return [
        *(_item(workspace, row, attempts[row["item_id"]], images[row["item_id"]], ahead) for row in results),
        *(_nameless_item(attempts[item_id], ahead) for item_id in sorted(unnamed)),
    ]


def _item(workspace: Workspace, row: Row, attempts: list[Row], images: list[Row], ahead: set[str]) -> ShownItem:
    modalities = row["response_modalities"]
    request = Request(
        model=row["model"],
        prompt=row["prompt"],
        image_urls=tuple(orjson.loads(row["image_urls"] or "[]")),
        aspect_ratio=row["aspect_ratio"],
        resolution=row["resolution"],
        response_modalities=tuple(orjson.loads(modalities)) if modalities else None,
    )
    hash_ = request_hash(request, workspace.spec)
    stored = [each for each in attempts if each["state"] == AttemptState.STORED and each["request_hash"] == hash_]
    current = max(stored, key=lambda each: each["attempt"])["attempt_id"] if stored else None
    entries: list[Row] = []
    for each in sorted(attempts, key=lambda each: each["attempt"]):
        if each["attempt_id"] not in ahead:
            continue
        entry = _attempt(each)
        if each["attempt_id"] == current:
            entry["images"] = _json(sorted(images, key=lambda image: image["n"]))
        if each["task_id"] and each["task_id"] == row["task_id"]:
            entry |= {"text": row["text"], "metadata": row["metadata"]}
        entries.append(entry)
    return ShownItem(
        item={
            **{name: row[name] for name in (*_IDENTITY, "campaign", "labels", "active")},
            "request_hash": hash_,
            "note": row["error_message"] if row["status"] == STATUS_OF[ItemState.DEFERRED] else None,
        },
        state=_STATE_OF[row["status"]],
        requests=[_request(hash_, request), *(_stand_in(each) for each in entries if each["request_hash"] != hash_)],
        attempts=entries,
    )


def _nameless_item(attempts: list[Row], ahead: set[str]) -> ShownItem:
    """An item that only its attempts tell of. Inactive, until the catalogue is read and says what it is."""
    last = max(attempts, key=lambda each: each["attempt"])
    entries = [_attempt(each) for each in attempts if each["attempt_id"] in ahead]
    return ShownItem(
        item={
            **{name: last[name] for name in (*_IDENTITY, "campaign", "request_hash")},
            "labels": None,
            "active": False,
            "note": None,
        },
        state=ItemState.PENDING,
        requests=[_stand_in(each) for each in attempts],
        attempts=entries,
    )


def _request(hash_: str, request: Request) -> Row:
    return {
        "request_hash": hash_,
        "model": request.model,
        "resolution": request.resolution,
        "body": request.to_json(),
    }


def _stand_in(attempt: Row) -> Row:
    """The request of an attempt, edited since: nobody knows its prompt. Registering it again enters it in full."""
    request = Request(attempt["model"], "(not known: the ledger was lost)", resolution=attempt["resolution"])
    return _request(attempt["request_hash"], request)


def _attempt(row: Row) -> Row:
    state, reserved = AttemptState(row["state"]), _micros(row["reserved_usd"])
    entry: Row = {name: row[name] for name in _FACTS}
    entry |= {name: _milliseconds(row[name]) for name in _TIMES}
    entry |= {
        "state": state,
        "reserved_micros": reserved,
        "cost_micros": _micros(row["cost_usd"]),
        "at_risk_micros": _micros(row["at_risk_usd"]),
        "cause": Cause.NEW if row["attempt"] == 1 else Cause.RETRY,
        "root_run_id": row["run_id"],
        "run_scope": row["run_id"],
        "owner": _NOBODY,
        "day": row["created_at"].astimezone(UTC).date().isoformat(),
        "submits": 1,
    }
    if state is AttemptState.SUBMITTING:
        # Whoever was sending it is gone, and nobody knows whether it arrived.
        entry |= {"state": AttemptState.UNKNOWN, "at_risk_micros": reserved, "error_kind": "unknown_outcome"}
        entry["error_message"] = "the ledger that knew what became of it is lost"
    return entry


def _json(values: list[Row]) -> str | None:
    return orjson.dumps(values).decode() if values else None


def _micros(usd: Decimal | None) -> int:
    return int((usd or Decimal(0)).scaleb(6))


def _milliseconds(instant: datetime | None) -> int | None:
    return None if instant is None else round(instant.timestamp() * 1000)
