"""A large ledger in seconds: rows as an engine would have left them, for what only shows at size."""

import hashlib
import io
from typing import Any

import orjson
import sqlalchemy as sa
from PIL import Image

from nanobanana_pipeline.catalogue.identity import Request, item_id, request_hash
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.ledger import Stamp

_TEXT = "a quiet harbour at dawn with red boats and one lonely gull over the cold blue water of an old painted sea"
_WORDS = tuple(_TEXT.split(" "))
Row = dict[str, Any]

_SHAPES = (("1:1", 512, 512), ("16:9", 688, 384), ("9:16", 384, 688), ("3:2", 632, 424))
_SHARD_SIZE = 1000
_NOW = 1_795_000_000_000
_DAY_MS = 86_400_000


def fill(workspace: Workspace, items: int, *, attempts_an_item: int = 1, pictures: int = 24, days: int = 20) -> None:
    """Enter `items` items of one catalogue, nine tenths of them done; they share a few picture files."""
    workspace.ledger.claim(Stamp("simulated", "http://127.0.0.1"))
    files = [_picture(workspace, n) for n in range(pictures)]
    with workspace.ledger.database.write() as connection:
        _shards(connection, items)
        for start in range(0, items, 5000):
            numbers = range(start, min(items, start + 5000))
            rows = [_rows(workspace, n, files[n % pictures], attempts_an_item, days) for n in numbers]
            connection.execute(schema.requests.insert(), [row[0] for row in rows])
            connection.execute(schema.items.insert(), [row[1] for row in rows])
            connection.execute(schema.attempts.insert(), [attempt for row in rows for attempt in row[2]])


def _shards(connection: sa.Connection, items: int) -> None:
    shards = range(-(-items // _SHARD_SIZE))
    rows = [{"shard": f"bulk-{n:06}", "catalogue": "bulk", "number": n, "prompts": _SHARD_SIZE} for n in shards]
    connection.execute(schema.shards.insert(), rows)


def _rows(workspace: Workspace, n: int, image: Row, attempts: int, days: int) -> tuple[Row, Row, list[Row]]:
    ratio, _, _ = _SHAPES[n % len(_SHAPES)]
    prompt = f"{' '.join(_WORDS[(n * 7 + i * 3) % len(_WORDS)] for i in range(22))}, number {n}"
    request = Request("nano_banana_2", prompt, (), ratio, "0.5K", None)
    digest = request_hash(request, workspace.spec)
    done = n % 10 != 9
    identity = {"item_id": item_id("bulk", f"p{n:06}", 1), "catalogue": "bulk", "prompt_id": f"p{n:06}", "sample": 1}
    shard = f"bulk-{n // _SHARD_SIZE:06}"
    made = [
        {
            **identity,
            "attempt_id": f"{n:012}-{number}",
            "attempt": number,
            "shard": shard,
            "campaign": f"campaign {n % 12}",
            "model": "nano_banana_2",
            "resolution": "0.5K",
            "request_hash": digest,
            "cause": "new" if number == 1 else "retry",
            "run_id": "run",
            "root_run_id": "run",
            "run_scope": "run",
            "owner": "owner",
            "state": "stored" if done and number == attempts else "failed",
            "day": f"2026-11-{1 + n % days:02}",
            "created_at": _NOW + (n % days) * _DAY_MS + n,
            "submitted_at": _NOW + (n % days) * _DAY_MS + n,
            "completed_at": _NOW + (n % days) * _DAY_MS + n + 4000 + (n * 7919) % 9000,
            "stored_at": _NOW + n + 15000 if done and number == attempts else None,
            "submits": 1,
            "polls": 3,
            "total_tokens": 1043,
            "reserved_micros": 51_000,
            "cost_micros": 45_612 + n % 100 if done and number == attempts else 0,
            "at_risk_micros": 0,
            "cost_source": "price_list",
            "error_kind": None if done and number == attempts else "provider_failure",
            "error_message": None if done and number == attempts else "internal generation error",
            "metadata": '{"completed_at":1795380838.6}',
            "images": orjson.dumps([image]).decode() if done and number == attempts else None,
        }
        for number in range(1, attempts + 1)
    ]
    item = {
        **identity,
        "shard": shard,
        "position": n,
        "request_hash": digest,
        "campaign": f"campaign {n % 12}",
        "labels": orjson.dumps({"style": ["ink", "oil", "photo"][n % 3]}).decode(),
        "active": True,
        "state": "done" if done else "failed",
        "attempts": attempts,
        "last_attempt_id": made[-1]["attempt_id"],
    }
    body = {"request_hash": digest, "model": "nano_banana_2", "resolution": "0.5K", "body": request.to_json()}
    return body, item, made


def _picture(workspace: Workspace, n: int) -> Row:
    _, width, height = _SHAPES[n % len(_SHAPES)]
    picture = Image.linear_gradient("L").rotate(n * 31, expand=False).resize((width, height))
    data = io.BytesIO()
    Image.merge("RGB", [picture.point([(v * k + n * 40) % 256 for v in range(256)]) for k in (1, 2, 3)]).save(
        data, "PNG"
    )
    sha256 = hashlib.sha256(data.getvalue()).hexdigest()
    path = f"images/bulk/picture-{n}.png"
    workspace.images.write(path, data.getvalue())
    facts = {"n": 1, "path": path, "sha256": sha256, "bytes": len(data.getvalue()), "format": "png"}
    return facts | {"width": width, "height": height, "has_c2pa": False, "source_url": "http://127.0.0.1/x"}
