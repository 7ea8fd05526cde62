"""The way bytes take: an httpx transport over aiohttp whose errors say whether a request may have left.

Only this knows aiohttp. It does not know the API, the token or what an answer means.

It builds on httpx-aiohttp's transport and replaces how that sends, for what was found in it (0.2.0):
- a connection that the server drops *after* taking the request is reported as `ConnectTimeout`, which reads as "never
  sent": the task would be submitted, and paid, a second time;
- URLs pass through a second quoting, which turns `%2F` in a query into `/` and so breaks signed URLs;
- looking a name up has no time limit;
- bodies come in pieces of 16 KB, which costs more than the rest of a download.
"""

import asyncio
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import aiohttp
import httpx
from aiohttp.client import ClientResponse, ClientSession
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from nanobanana_pipeline.generation.hosts import RefusedAddressError, SocketFactory

# Servers commonly drop an idle connection after 5 s; one used at that very moment may or may not have taken the
# request.
_KEEPALIVE_S = 4
_CHUNK_BYTES = 1 << 20
# Enough that a picture arrives without the socket being paused again and again.
_BUFFER_BYTES = 1 << 18
# A redirect to a signed URL can be longer than aiohttp's 8 KB.
_MAX_HEADER_BYTES = 1 << 16
_DNS_CACHE_S = 30
_MAX_LENGTH_DIGITS = 19


class NeverSentError(httpx.ConnectError):
    """No connection was opened, so not a byte of the request has left."""


class RefusedHostError(NeverSentError):
    """The host's address may not be connected to."""


class MaybeSentError(httpx.NetworkError):
    """The request, or a part of it, may have arrived, and there is no whole answer."""


class BodyError(Exception):
    """The head of an answer came, and its body can't be had."""


class TooLargeError(BodyError):
    """The body is larger than it may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `headers` know no case. `fault` says why the body could not be had, which is then empty."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    fault: str | None = None


class HiddenHeaders(dict[str, str]):
    """Headers of a request whose values, the token among them, no repr shows."""

    def __repr__(self) -> str:
        return f"HiddenHeaders({', '.join(self)})"


@cache
def tls_context() -> ssl.SSLContext:
    """The usual certificates, whatever the environment says. Reading them takes longer than a hundred requests."""
    return httpx.create_ssl_context(verify=True, trust_env=False)


class Transport(AiohttpTransport):
    """Sends requests; every failure is a `NeverSentError` or a `MaybeSentError`, with a short text that holds no URL.

    Time limits come with each request, as httpx's `timeout` extension in seconds: `connect` for all of looking up,
    connecting and TLS; `read` between two pieces of an answer. There is no pool limit: how many requests are open is
    the caller's to bound. A POST is never sent twice, a GET may be, on a connection that turns out to be closed.
    `sockets`, when given, makes the socket for each address about to be connected to, and may refuse it. Make it
    inside a running event loop.
    """

    def __init__(self, tls: ssl.SSLContext, *, sockets: SocketFactory | None = None) -> None:
        self._session = ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=_DNS_CACHE_S, ssl=tls, socket_factory=sockets
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Neither a proxy nor a .netrc of the machine may get to see the token.
            trust_env=False,
            auto_decompress=False,
            read_bufsize=_BUFFER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
        super().__init__(verify=tls, trust_env=False, client=self._session)

    async def ask(
        self,
        method: str,
        url: str,
        headers: HiddenHeaders,
        content: bytes | None = None,
        *,
        connect_s: float,
        limit_s: float,
        most: int,
    ) -> Answer:
        """One exchange, over within `limit_s`, whose answer has at most `most` bytes.

        The lean way for what is asked all the time: making httpx's objects costs as much as sending does. The URL goes
        out as it stands. Raises `NeverSentError`, or `MaybeSentError` while not even the head of an answer is there;
        what goes wrong later is the answer's `fault`.
        """
        response: ClientResponse | None = None
        body, fault = b"", None
        try:
            async with asyncio.timeout(limit_s):
                with _plain_errors():
                    response = await self._session.request(
                        method,
                        URL(url, encoded=True),
                        headers=headers,
                        data=content,
                        allow_redirects=False,
                        timeout=_connecting_within(connect_s),
                    )
                body = await _whole_body(response, most)
        except BodyError as error:
            fault = str(error)
        except TimeoutError:
            fault = f"no whole answer within {limit_s:g} s"
        finally:
            if response is not None:
                response.release()
        if response is None:
            raise MaybeSentError(fault or "no answer")
        return Answer(response.status, response.headers, body, fault)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the answer's head; the body follows through its stream."""
        limits: dict[str, float | None] = request.extensions.get("timeout", {})
        with _plain_errors():
            response = await self._session.request(
                request.method,
                # As it stands: it is quoted already, and a signature holds for just these characters.
                URL(str(request.url), encoded=True),
                headers=request.headers,
                data=request.content or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(connect=limits.get("connect"), sock_read=limits.get("read")),
            )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response), request=request)


async def _whole_body(response: ClientResponse, most: int) -> bytes:
    head = response.headers
    length = _digits(head.get("content-length", ""))
    if not length or length > most or "content-encoding" in head:
        # What is long, compressed or of unknown length is read with care.
        parts = httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response))
        return await read_whole(parts, most)
    try:
        with _plain_errors():
            return await response.read()
    except MaybeSentError as error:
        raise BodyError(str(error)) from error


async def read_whole(response: httpx.Response, most: int) -> bytes:
    """The whole body, at most `most` bytes once decoded. Raises `BodyError`, and `TooLargeError` without reading on.

    The connection is let go in any case. A body of the length that was announced, or none at all, is whole.
    """
    pieces: list[bytes] = []
    room = most
    try:
        if _announced_bytes(response) > most:
            raise TooLargeError(f"larger than {most} bytes")
        inflate = _inflater(response.headers.get("content-encoding", "identity"))
        async for piece in _stream(response):
            # One byte more than there is room for is enough to know; a bomb is not inflated any further.
            plain = piece if inflate is None else inflate.decompress(piece, room + 1)
            room -= len(plain)
            if room < 0:
                raise TooLargeError(f"larger than {most} bytes")
            pieces.append(plain)
        if inflate is not None and pieces and not inflate.eof:
            raise BodyError("the compressed answer ended before it was whole")
    except MaybeSentError as error:
        raise BodyError(str(error)) from error
    except zlib.error as error:
        raise BodyError("the answer is not compressed as it says") from error
    finally:
        await discard(response)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def discard(response: httpx.Response) -> None:
    """Let the connection go. One whose body was not read to its end is closed, not used again."""
    await _stream(response).aclose()


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    stream = response.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError("the response comes from no async transport")
    return stream


def _announced_bytes(response: httpx.Response) -> int:
    return _digits(response.headers.get("content-length", "")) or 0


def _digits(length: str) -> int | None:
    return int(length) if length.isdecimal() and len(length) < _MAX_LENGTH_DIGITS else None


@cache
def _connecting_within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=seconds)


def _inflater(encoding: str) -> "_Inflater | None":
    match encoding.strip().lower():
        case "identity" | "":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        case "deflate":
            return zlib.decompressobj()
        case _:
            raise BodyError("the answer is compressed in a way that was not asked for")


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Body(httpx.AsyncByteStream):
    """The body of an answer, in large pieces."""

    def __init__(self, response: ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _plain_errors():
            async for piece in self._response.content.iter_chunked(_CHUNK_BYTES):
                yield piece

    async def aclose(self) -> None:
        self._response.release()


@contextmanager
def _plain_errors() -> Generator[None]:
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, RefusedAddressError):
            raise RefusedHostError(str(error.os_error)) from error
        raise NeverSentError(_why_not_connected(error)) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise NeverSentError("connecting took too long") from error
    except aiohttp.InvalidURL as error:
        raise NeverSentError("the URL can't be connected to") from error
    except TimeoutError as error:
        raise MaybeSentError("no answer in time") from error
    except aiohttp.ServerDisconnectedError as error:
        raise MaybeSentError("the server closed the connection without an answer") from error
    except aiohttp.ClientPayloadError as error:
        raise MaybeSentError("the answer ended before it was whole") from error
    except aiohttp.ClientResponseError as error:
        raise MaybeSentError("the answer is not HTTP") from error
    # RuntimeError: what uvloop raises when it writes to a transport that has just been closed.
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        raise MaybeSentError(f"the connection broke ({type(error).__name__})") from error


def _why_not_connected(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name can't be resolved"
    cause = error.os_error
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or type(cause).__name__}"
    # Not the error's own text: the event loop puts the address into it.
    return (os.strerror(cause.errno) if cause.errno else type(cause).__name__).lower()
