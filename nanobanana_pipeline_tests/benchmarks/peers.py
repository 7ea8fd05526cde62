"""Programs to be held against the product: each makes COUNT images at one provider and ends.

They do nothing but the HTTP calls and write each picture to a file: no ledger, no verification, no fsync, no tables.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

SUBMIT: Final = "/model/v1/generation"
_THREADS: Final = 64

Ask = Callable[[str, str, Any], Awaitable[bytes]]
"""Sends method, address and JSON body; the whole body of the answer."""


async def _all(ask: Ask, base_url: str, folder: Path, count: int, in_flight: int, gap_s: float) -> None:
    """Work `count` items off, at most `in_flight` at once, each asked about every `gap_s` seconds."""
    slots = asyncio.Semaphore(in_flight)

    async def one(number: int) -> None:
        async with slots:
            body = {"model": "nano_banana_2", "input": [{"params": {"prompt": f"benchmark {number}"}}]}
            task = json.loads(await ask("POST", base_url + SUBMIT, body))
            while task["status"] == "in_progress":
                await asyncio.sleep(gap_s)
                task = json.loads(await ask("GET", f"{base_url}{SUBMIT}/task/{task['id']}", None))
            url = next(entry["url"] for entry in task["output"][0]["content"] if entry["type"] == "image")
            (folder / f"{number}.jpg").write_bytes(await ask("GET", url, None))

    await asyncio.gather(*map(one, range(count)))


def floor(*work: Any) -> None:
    """The leanest loop: raw aiohttp on uvloop."""
    import aiohttp  # noqa: PLC0415 - each peer pays for its own imports alone
    import uvloop  # noqa: PLC0415

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": "Bearer none"}
        async with aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=2**18) as session:

            async def ask(method: str, url: str, body: Any) -> bytes:
                async with session.request(method, url, json=body) as answer:
                    return await answer.read()

            await _all(ask, *work)

    uvloop.run(main())


def bare(*work: Any) -> None:
    """The same loop with httpx over httpx-aiohttp: the API that the product is written against."""
    import httpx  # noqa: PLC0415
    import httpx_aiohttp  # noqa: PLC0415
    import uvloop  # noqa: PLC0415

    async def main() -> None:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": "Bearer none"}
        async with httpx_aiohttp.HttpxAiohttpClient(headers=headers, limits=limits, timeout=60) as client:
            await _all(_httpx(client), *work)

    uvloop.run(main())


def gather(*work: Any) -> None:
    """What a person would write: asyncio.gather over httpx as it comes, but that waiting for a connection may last."""
    import httpx  # noqa: PLC0415

    async def main() -> None:
        timeout = httpx.Timeout(60, pool=None)
        async with httpx.AsyncClient(headers={"Authorization": "Bearer none"}, timeout=timeout) as client:
            await _all(_httpx(client), *work)

    asyncio.run(main())


def _httpx(client: Any) -> Ask:
    async def ask(method: str, url: str, body: Any) -> bytes:
        return (await client.request(method, url, json=body)).content

    return ask


def threads(base_url: str, folder: Path, count: int, _: int, gap_s: float) -> None:
    """The other thing that a person would write: 64 threads, each with a session of requests, an item at a time."""
    import threading  # noqa: PLC0415
    import time  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    import requests  # noqa: PLC0415

    own = threading.local()

    def one(number: int) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
            own.session.headers["Authorization"] = "Bearer none"
        body = {"model": "nano_banana_2", "input": [{"params": {"prompt": f"benchmark {number}"}}]}
        task = own.session.post(base_url + SUBMIT, json=body, timeout=60).json()
        while task["status"] == "in_progress":
            time.sleep(gap_s)
            task = own.session.get(f"{base_url}{SUBMIT}/task/{task['id']}", timeout=60).json()
        url = next(entry["url"] for entry in task["output"][0]["content"] if entry["type"] == "image")
        (folder / f"{number}.jpg").write_bytes(own.session.get(url, timeout=60).content)

    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(one, number) for number in range(count)]:
            done.result()


if __name__ == "__main__":
    name, url, output, items, at_once, gap = sys.argv[1:]
    {"floor": floor, "bare": bare, "gather": gather, "threads": threads}[name](
        url, Path(output), int(items), int(at_once), float(gap)
    )
