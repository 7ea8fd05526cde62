"""A server that does to connections what servers do on their worst days, and counts what reached it.

It speaks just enough HTTP to read a request; what it answers is bytes as the test wrote them.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Received:
    """A request as it arrived; header names in lower case. `connection` counts from 0."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass(frozen=True)
class Reply:
    """Bytes to send as they are, and what to do with the connection then."""

    data: bytes = b""
    then: str = "keep"  # or "close", "reset", "hang" (until the client goes), "repeat", "trickle" (for ever)


def reply(status: int, body: bytes = b"", then: str = "keep", **headers: str) -> Reply:
    """A well-formed answer; `content_length` and other headers by name."""
    lines = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return Reply(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body, then)


class RawServer:
    """`async with RawServer(answer) as server`: `answer` is asked for a reply to each request."""

    def __init__(self, answer: Callable[[Received], Reply], *, host: str = "127.0.0.1") -> None:
        self._answer = answer
        self._host = host
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: list[Received] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        """The server's origin."""
        return f"http://{self._host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self.connections += 1
        self._tasks.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._exchange(reader, writer, connection):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> bool:
        request = await _read(reader, connection)
        self.requests.append(request)
        chosen = self._answer(request)
        writer.write(chosen.data)
        await writer.drain()
        match chosen.then:
            case "keep":
                return True
            case "hang":
                await reader.read()
            case "repeat":
                while True:
                    writer.write(chosen.data)
                    await writer.drain()
            case "trickle":
                while not await _gone(reader, 0.05):
                    writer.write(b".")
            case "reset":
                _reset_on_close(writer)
            case _:
                pass
        return False


async def _read(reader: asyncio.StreamReader, connection: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, target, headers, body, connection)


async def _gone(reader: asyncio.StreamReader, within_s: float) -> bool:
    """Whether the client closes the connection within a time."""
    try:
        return not await asyncio.wait_for(reader.read(1), within_s)
    except TimeoutError:
        return False


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Let the connection end with RST instead of FIN, as a crashed server's does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
