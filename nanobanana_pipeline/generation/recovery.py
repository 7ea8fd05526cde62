"""Image files that are gone: which they are, and fetching them again from the provider, which costs nothing.

The task was paid for and its images are still its own: an address that works, or a fresh one for the asking, gives them
back, for as long as the provider keeps them. Making an image anew is paid work, and so never done from here.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import pyarrow.compute as pc

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.answers import PollError
from nanobanana_pipeline.generation.client import Provider
from nanobanana_pipeline.generation.delivery import Delivery
from nanobanana_pipeline.generation.filing import THREADS, Filing
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.publishing import publish_shard
from nanobanana_pipeline.generation.shard_run import OpenProvider
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.entries import Attempt
from nanobanana_pipeline.ledger.work import StoredAttempt, stored_attempts

_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class MissingImage:
    """An item whose image is not where its row says; `path` None: no row says where."""

    item_id: str
    prompt_id: str
    sample: int
    path: str | None


@dataclass(slots=True)
class Recovered:
    """The items whose images are back, and why the others' are not, by item."""

    items: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def missing_images(workspace: Workspace) -> list[MissingImage]:
    """Every image of the tables without its file, or with one of another size. Looks at every file."""
    images = workspace.tables.read("images", ["item_id", "prompt_id", "sample", "path", "bytes"]).to_pylist()
    missing = [
        MissingImage(row["item_id"], row["prompt_id"], row["sample"], row["path"])
        for row in images
        if not workspace.images.exists(row["path"], row["bytes"])
    ]
    # A ledger that was adopted from the tables may know that an image was stored, and not where.
    pathless = (pc.field("status") == "succeeded") & (pc.field("image_count") == 0)
    results = workspace.tables.read("results", ["item_id", "prompt_id", "sample"], pathless).to_pylist()
    return missing + [MissingImage(row["item_id"], row["prompt_id"], row["sample"], None) for row in results]


def recover_images(workspace: Workspace, missing: Sequence[MissingImage], open_provider: OpenProvider) -> Recovered:
    """Fetch missing images again, from where they were or from a fresh address that the task is asked for.

    Other bytes than before count when they are a good image: their hash is entered in the place of the old one.
    """
    with workspace.ledger.database.read() as connection:
        stored = stored_attempts(connection, [image.item_id for image in missing])
    recovered = Recovered()
    asyncio.run(_recover(workspace, stored, open_provider, recovered))
    for shard in sorted({each.attempt.shard for each in stored if each.attempt.item_id in recovered.items}):
        publish_shard(workspace, shard)
    return recovered


async def _recover(
    workspace: Workspace, stored: Sequence[StoredAttempt], open_provider: OpenProvider, recovered: Recovered
) -> None:
    slots = asyncio.Semaphore(_AT_ONCE)
    with ThreadPoolExecutor(THREADS) as executor:
        async with open_provider() as provider:
            filing = Filing(workspace.images, workspace.spec, executor, verify=workspace.settings.verify)
            delivery = Delivery(provider, filing, patience=Patience(), at_once=_AT_ONCE)

            async def one(each: StoredAttempt) -> None:
                async with slots:
                    reason = await _fetch(workspace, provider, delivery, each)
                if reason is None:
                    recovered.items.append(each.attempt.item_id)
                else:
                    recovered.reasons[each.attempt.item_id] = reason

            await asyncio.gather(*map(one, stored))


async def _fetch(workspace: Workspace, provider: Provider, delivery: Delivery, stored: StoredAttempt) -> str | None:
    """Fetch the images of one attempt; returns why that was not possible."""
    attempt = stored.attempt

    async def fresh() -> tuple[str, ...] | str:
        answer = await provider.poll(attempt.task_id or "")
        return answer.message if isinstance(answer, PollError) else answer.task.image_urls

    urls = tuple(orjson.loads(attempt.urls or "[]")) or await fresh()
    if isinstance(urls, str):
        return f"the provider could not be asked for its address: {urls}"
    if not urls:
        return "the provider has no address for it"
    delivered = await delivery.deliver(attempt, Request.from_json(attempt.body), urls, fresh)
    if delivered.faults:
        return delivered.message
    await _enter(workspace, attempt, delivered.images)
    return None


async def _enter(workspace: Workspace, attempt: Attempt, images: list[dict[str, Any]]) -> None:
    text = orjson.dumps(images).decode()
    await workspace.ledger.post(lambda postings: postings.note(attempt, images=text))
