"""docs/cookbook.md: its questions, asked of a small output that is the same each time.

`python -m nanobanana_pipeline_tests.reporting.cookbook` writes the answers into the page anew.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.publishing import publish_shard
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.ledger import Stamp
from nanobanana_pipeline.model_specs.pricing import Usage, cost_of
from nanobanana_pipeline.reporting.costs import publish_cost_daily
from nanobanana_pipeline.reporting.reconcile import reconcile
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline.storage.query import run_query

PAGE: Final = Path(__file__).parents[2] / "docs" / "cookbook.md"
_RECIPE: Final = re.compile(r"```sql\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)

_BEGAN_MS: Final = round(datetime(2026, 11, 2, 8, tzinfo=UTC).timestamp() * 1000)
_DAY_MS: Final = 86_400_000
_PIXELS: Final = {"0.5K": 512, "1K": 1024, "2K": 2048}
_SUBJECTS: Final = ("a red kite", "a lighthouse", "an old bicycle", "two owls", "a paper boat", "a market stall")

Row = dict[str, Any]


def recipes(page: str) -> Iterator[tuple[str, str]]:
    """The queries of the page, each with the answer that stands there."""
    for found in _RECIPE.finditer(page):
        yield found[1].strip(), found[2]


def answer(output: str | Path, sql: str) -> str:
    """What `nanobanana query` says to a query, as text of a fixed width."""
    with patch.dict(os.environ, COLUMNS="118"):
        said = run_query(output, sql, "table", None)
    assert isinstance(said, str)
    return "\n".join(line.rstrip() for line in said.strip("\n").splitlines()) + "\n"


def make(folder: Path) -> str:
    """Make the output that the page asks; returns where it is. Its books are written by hand, its tables as ever."""
    (folder / "catalogue").mkdir()
    for name, prompts in (("posters", 24), ("tiles", 12)):
        pq.write_table(pa.Table.from_pylist(_catalogue(name, prompts)), folder / "catalogue" / f"{name}.parquet")
    settings = load_settings(
        api_key="k", base_url="http://127.0.0.1", output=str(folder / "output"), catalogue=str(folder / "catalogue")
    )
    with Workspace.open(settings) as workspace:
        workspace.ledger.claim(Stamp("live", "https://api.example.com"))
        shards = refresh(workspace).shards
        with workspace.ledger.database.write() as connection:
            items = connection.execute(
                sa.select(schema.items, schema.requests.c.resolution)
                .join(schema.requests, schema.requests.c.request_hash == schema.items.c.request_hash)
                .order_by(schema.items.c.catalogue, schema.items.c.position)
            ).all()
            for number, item in enumerate(items):
                _work_off(workspace, connection, number, item)
        for shard in shards:
            publish_shard(workspace, shard)
        publish_cost_daily(workspace)
        reconcile(workspace, _invoice(workspace, folder / "november.csv"))
        return workspace.output


def _catalogue(name: str, prompts: int) -> list[Row]:
    rows = [
        {
            "prompt_id": f"{name[0]}{n:02}",
            "prompt": f"{_SUBJECTS[n % len(_SUBJECTS)]} in {('ink', 'oil', 'chalk')[n % 3]}, {name} number {n}",
            "resolution": ("1K", "1K", "2K")[n % 3] if name == "posters" else "0.5K",
            "aspect_ratio": "1:1",
            "samples": 2 if n % 8 == 0 else 1,
            "campaign": ("spring", "autumn", None)[n // 8] if name == "posters" else "spring",
            "style": ("ink", "oil", "chalk")[n % 3],
        }
        for n in range(prompts)
    ]
    bad = {"prompt_id": f"{name[0]}99", "prompt": "a kite", "aspect_ratio": "7:5" if name == "tiles" else "square"}
    return [*rows, {**rows[0], **bad}]


def _work_off(workspace: Workspace, connection: sa.Connection, number: int, item: Any) -> None:
    """What became of an item: mostly an image, and of each kind of trouble one or two."""
    random = Random(number)
    ends = {
        4: ("failed", "stored"),
        9: ("refused",),
        13: ("stored", "stored"),
        17: ("unknown",),
        20: ("failed", "failed", "failed"),
        26: ("unusable",),
        31: ("failed", "stored"),
    }.get(number, ("stored",))
    if number == 35:
        ends = ()
    attempts = [_attempt(workspace, random, number, item, n, end) for n, end in enumerate(ends, 1)]
    if attempts:
        connection.execute(schema.attempts.insert(), attempts)
    state = {"stored": "done", "unknown": "unknown", "": "deferred"}.get(ends[-1] if ends else "", "failed")
    connection.execute(
        schema.items.update()
        .where(schema.items.c.item_id == item.item_id)
        .values(
            state=state,
            attempts=len(attempts),
            last_attempt_id=attempts[-1]["attempt_id"] if attempts else None,
            note=None if attempts else "the cap of the day has no room",
        )
    )


def _attempt(workspace: Workspace, random: Random, number: int, item: Any, n: int, end: str) -> Row:
    created = _BEGAN_MS + (number // 14) * _DAY_MS + number * 61_000 + n * 1_000
    day = datetime.fromtimestamp(created / 1000, UTC).date()
    paid, task = end in {"stored", "unusable"}, end not in {"refused", "unknown"}
    tokens = workspace.spec.image_tokens(item.resolution) + random.randrange(40, 90)
    usage = Usage(random.randrange(9, 16), tokens, None)
    cost = cost_of(workspace.spec, usage, resolution=item.resolution, images=1, day=day)
    own_price = number % 9 == 5
    error = {
        "failed": ("provider_failure", "500", "internal generation error"),
        "refused": ("content_policy", "400", "the prompt was refused by moderation"),
        "unknown": ("unknown_outcome", None, "connection reset before an answer came"),
        "unusable": ("bad_output", None, "the image is blank"),
    }.get(end, (None, None, None))
    completed = created + random.randrange(6_000, 14_000) + _PIXELS[item.resolution] * 4
    return {
        **{name: getattr(item, name) for name in ("item_id", "catalogue", "shard", "prompt_id", "sample", "campaign")},
        "attempt_id": f"{created:012x}{number:018}{n:02}",
        "attempt": n,
        "model": "nano_banana_2",
        "resolution": item.resolution,
        "request_hash": item.request_hash,
        "cause": "new" if n == 1 else "retry",
        **dict.fromkeys(("run_id", "root_run_id", "run_scope", "owner"), f"run-{1 + number // 14}"),
        "plan_hash": ("3f2a9c51d07e", "3f2a9c51d07e", "b81e44f0a2c6")[number // 14],
        "state": end,
        "task_id": f"task-{number:03}-{n}" if task else None,
        "day": day.isoformat(),
        "created_at": created,
        "submitted_at": created + 300 if task else None,
        "completed_at": completed if task else None,
        "stored_at": completed + 900 if end == "stored" else None,
        "submits": 1,
        "polls": 3 if task else 0,
        "prompt_tokens": usage.prompt_tokens if paid else None,
        "completion_tokens": tokens if paid else None,
        "total_tokens": tokens + (usage.prompt_tokens or 0) if paid else None,
        "reserved_micros": 90_000,
        "cost_micros": (50_000 if own_price else cost.micros) if paid else 0,
        "at_risk_micros": 90_000 if end == "unknown" else 0,
        "cost_source": ("provider" if own_price else cost.source) if paid else None,
        "price_version": cost.price_version if paid and not own_price else None,
        **dict(zip(("error_kind", "error_code", "error_message"), error, strict=True)),
        "urls": "[]",
        "images": orjson.dumps([_image(item, random)]).decode() if end == "stored" else None,
    }


def _image(item: Any, random: Random) -> Row:
    size = _PIXELS[item.resolution]
    digest = f"{random.getrandbits(256):064x}"
    path = f"images/{item.catalogue}/{item.shard}/{item.prompt_id}-{item.sample}-{digest[:12]}.png"
    facts = {"n": 1, "path": path, "sha256": digest, "bytes": size * size // 3, "format": "png"}
    sizes = {"width": size, "height": size, "expected_width": size, "expected_height": size}
    return facts | sizes | {"has_c2pa": False, "source_url": "https://cdn.example.com/x.png"}


def _invoice(workspace: Workspace, path: Path) -> Path:
    """The provider's bill: all that was paid for, one failure too, and one charge of which nothing is known here."""
    paid = [row for row in workspace.tables.read("attempts").to_pylist() if row["cost_usd"]]
    lines = sorted(f"{row['task_id']},{row['cost_usd']},{row['completed_at']:%Y-%m-%dT%H:%M:%SZ}" for row in paid)
    lines += ["task-020-1,0.067200,2026-11-03T08:20:40Z", "task-900-1,0.067200,2026-11-03T08:17:30Z"]
    path.write_text("\n".join(["task_id,amount,time", *lines]) + "\n")
    return path


def main() -> int:
    """Write every answer of the page anew."""
    with tempfile.TemporaryDirectory() as folder:
        output = make(Path(folder))
        page = PAGE.read_text()

        def answered(found: re.Match[str]) -> str:
            return f"```sql\n{found[1]}```\n\n```text\n{answer(output, found[1])}```"

        PAGE.write_text(_RECIPE.sub(answered, page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
