"""The programs that are measured: each makes COUNT images at one provider and ends. Run one per process.

`floor` and `gather` do nothing but the HTTP calls: no ledger, no verification, no fsync, no tables. What the product
adds is the difference.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx
import uvloop

from nanobanana_pipeline.generation.client import HttpProvider
from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.shard_run import RunOptions, generate_shard
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.settings import load_settings

_SUBMIT: Final = "/model/v1/generation"
_POLL_EVERY_S: Final = 0.5


def _body(number: int) -> dict[str, Any]:
    return {"model": "nano_banana_2", "input": [{"params": {"prompt": f"benchmark {number}"}}]}


def floor(base_url: str, key: str, folder: Path, count: int) -> None:
    """The leanest loop: raw aiohttp on uvloop, nothing durable."""

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        async with session.post(base_url + _SUBMIT, json=_body(number)) as answer:
            task = await answer.json()
        while task["status"] == "in_progress":
            await asyncio.sleep(_POLL_EVERY_S)
            async with session.get(f"{base_url}{_SUBMIT}/task/{task['id']}") as answer:
                task = await answer.json()
        async with session.get(_image_url(task), headers={"Authorization": ""}) as answer:
            (folder / f"{number}.png").write_bytes(await answer.read())

    async def main() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            await asyncio.gather(*(one(session, number) for number in range(count)))

    uvloop.run(main())


def gather(base_url: str, key: str, folder: Path, count: int) -> None:
    """What a person would write: asyncio.gather over httpx."""

    async def one(client: httpx.AsyncClient, images: httpx.AsyncClient, number: int) -> None:
        task = (await client.post(_SUBMIT, json=_body(number))).json()
        while task["status"] == "in_progress":
            await asyncio.sleep(_POLL_EVERY_S)
            task = (await client.get(f"{_SUBMIT}/task/{task['id']}")).json()
        answer = await images.get(_image_url(task))
        (folder / f"{number}.png").write_bytes(answer.content)

    async def main() -> None:
        limits = httpx.Limits(max_connections=256)
        timeout = httpx.Timeout(60, pool=None)
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            httpx.AsyncClient(base_url=base_url, headers=headers, limits=limits, timeout=timeout) as client,
            httpx.AsyncClient(limits=limits, timeout=timeout) as images,
        ):
            await asyncio.gather(*(one(client, images, number) for number in range(count)))

    asyncio.run(main())


def product(base_url: str, key: str, folder: Path, count: int, verify: str) -> None:
    """The pipeline without Dagster: ledger durable, images verified and fsynced, tables written."""
    settings = load_settings(
        api_key=key,
        base_url=base_url,
        catalogue=str(folder.parent / "catalogue"),
        output=str(folder),
        budget_usd=1_000_000,
        max_in_flight=1000,
        shard_size=100_000,
        verify=verify,
    )
    with Workspace.open(settings) as workspace:
        done = 0
        for shard in refresh(workspace).shards:
            report = generate_shard(
                workspace,
                shard,
                lambda: HttpProvider(workspace.spec, settings.api_key, base_url=base_url),
                RunOptions("bench", "bench", "bench"),
            )
            done += report.tally.succeeded
    if done != count:
        raise AssertionError(f"{done} images of {count}")


def _image_url(task: dict[str, Any]) -> str:
    return next(entry["url"] for entry in task["output"][0]["content"] if entry["type"] == "image")


if __name__ == "__main__":
    name, url, api_key, output, items = sys.argv[1:]
    if name in {"structure", "full"}:
        product(url, api_key, Path(output), int(items), name)
    else:
        {"floor": floor, "gather": gather}[name](url, api_key, Path(output), int(items))
