"""A provider that costs next to nothing, so that it is never what a benchmark waits for.

The simulator checks, keeps a book and can go wrong; this only answers. Tasks take log-normal times, every picture is
the same. `GET /stats` tells what it saw: submits, polls, how long after their ends tasks were found ended, and how many
were open at most, not found ended yet.
"""

import argparse
import asyncio
import json
import math
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

import httptools
import uvloop
from PIL import Image

from nanobanana_pipeline_tests.benchmarks.measuring import ROOT, pin, python

SUBMIT: Final = "/model/v1/generation"
_TASK: Final = f"{SUBMIT}/task/"
_PICTURE_BYTES: Final = 277_000


@dataclass(frozen=True, slots=True)
class RunningProvider:
    """A provider in a process of its own."""

    pid: int
    base_url: str

    def stats(self) -> dict[str, Any]:
        """What it has seen so far."""
        with urllib.request.urlopen(f"{self.base_url}/stats", timeout=30) as answer:  # noqa: S310 - our own address
            return json.load(answer)


@contextmanager
def running_provider(**options: float) -> Generator[RunningProvider]:
    """A provider on a core of its own; `options` are those of the command line."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = subprocess.Popen(python(__name__, *arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pin(process.pid, provider=True)
        if process.stdout is None:
            raise AssertionError("started without a pipe")
        yield RunningProvider(process.pid, f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.terminate()
        process.communicate()


def photo(size: int = _PICTURE_BYTES) -> bytes:
    """A JPEG of 1024 x 1024 with about `size` bytes of real picture: padding would make it cheap to check."""
    noise = Image.effect_noise((1024, 1024), 40)
    channels = [noise, noise.transpose(Image.Transpose.ROTATE_90), noise.transpose(Image.Transpose.ROTATE_180)]
    picture = Image.merge("RGB", channels).resize((512, 512)).resize((1024, 1024))
    low, high, best = 1, 95, b""
    while low <= high:
        quality = (low + high) // 2
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if len(buffer.getvalue()) <= size:
            low, best = quality + 1, buffer.getvalue()
        else:
            high = quality - 1
    return best


@dataclass(slots=True)
class _Shop:
    """Tasks and what is counted."""

    latency_s: float
    sigma: float
    image: bytes
    port: int = 0
    due: dict[str, float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    counts: dict[str, float] = field(default_factory=lambda: {"submits": 0, "polls": 0, "images": 0, "ended": 0})
    lag_s: float = 0.0
    most_open: int = 0
    draw: random.Random = field(default_factory=lambda: random.Random(7))

    def answer(self, method: str, path: str) -> bytes:
        if method == "POST":
            return self._submitted()
        if path.startswith(_TASK):
            return self._task(path[len(_TASK) :])
        if path.startswith("/image/"):
            self.counts["images"] += 1
            return self.image
        used = time.process_time()
        stats = {"lag_s": self.lag_s, "cpu_s": used, "tasks": len(self.due), "most_open": self.most_open}
        return _json_reply(self.counts | stats)

    def _submitted(self) -> bytes:
        self.counts["submits"] += 1
        task = f"task-{len(self.due)}"
        self.due[task] = time.monotonic() + self.latency_s * math.exp(self.draw.gauss(0, self.sigma))
        self.most_open = max(self.most_open, len(self.due) - len(self.seen))
        return _json_reply({"id": task, "created_at": 0, "status": "in_progress", "model": "nano_banana_2"})

    def _task(self, task: str) -> bytes:
        self.counts["polls"] += 1
        lag_s = time.monotonic() - self.due[task]
        if lag_s < 0:
            return _json_reply({"id": task, "status": "in_progress", "model": "nano_banana_2", "progress": 0.5})
        if task not in self.seen:
            self.seen.add(task)
            self.counts["ended"] += 1
            self.lag_s += lag_s
        url = f"http://127.0.0.1:{self.port}/image/{task}.jpg?signature=none"
        return _json_reply(
            {
                "id": task,
                "status": "completed",
                "model": "nano_banana_2",
                "output": [{"content": [{"type": "image", "url": url, "jobId": task}]}],
                "usage": {"prompt_tokens": 12, "completion_tokens": 1290, "total_tokens": 1302},
                "metadata": {"completed_at": 1.5},
            }
        )


class _Connection(asyncio.Protocol):
    def __init__(self, shop: _Shop) -> None:
        self._shop = shop
        self._parser = httptools.HttpRequestParser(self)
        self._path = ""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url.decode()

    def on_message_complete(self) -> None:
        self._transport.write(self._shop.answer(self._parser.get_method().decode(), self._path))


def _json_reply(value: dict[str, Any]) -> bytes:
    return _reply(b"application/json", json.dumps(value, separators=(",", ":")).encode())


def _reply(kind: bytes, body: bytes) -> bytes:
    # Says that it is a simulator, so that the product never takes this for real work.
    head = b"HTTP/1.1 200 OK\r\nX-Nanobanana-Simulator: 1\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


async def _serve(shop: _Shop) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(shop), "127.0.0.1", 0, backlog=4096)
    shop.port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"{shop.port}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, required=True)
    parser.add_argument("--sigma", type=float, required=True)
    chosen = parser.parse_args()
    uvloop.run(_serve(_Shop(chosen.latency, chosen.sigma, _reply(b"image/jpeg", photo()))))
