"""The way bytes take: an httpx transport over aiohttp whose errors say whether a request may have left.

Only this knows aiohttp. It does not know the API, the token or what an answer means. Why it is not one of httpx's own:
docs/decisions/0003.
"""

import asyncio
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import aiohttp
import httpx
from aiohttp.client import ClientResponse, ClientSession
from multidict import CIMultiDict
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
# A refusal is one by its status: a longer explanation is not worth the wait.
_MAX_REFUSAL_BYTES = 1 << 18

SUCCESSES = range(200, 300)


class NeverSentError(httpx.ConnectError):
    """No connection was opened, so not a byte of the request has left."""


class BadUrlError(NeverSentError):
    """The URL is none that anything could be sent to."""


class RefusedHostError(NeverSentError):
    """The host's address may not be connected to."""


class MaybeSentError(httpx.NetworkError):
    """The request, or a part of it, may have arrived, and there is no whole answer."""


Bounds = dict[str, Any]


class BodyError(Exception):
    """The head of an answer came, and its body can't be had."""


class TooLargeError(BodyError):
    """The body is larger than it may be."""


def bounds(*, connect_s: float, most_bytes: int, whole_s: float | None = None, idle_s: float | None = None) -> Bounds:
    """What a request may take, as its `extensions`.

    `connect_s` bounds looking up, connecting and TLS together, `whole_s` the exchange, `idle_s` the silence between two
    pieces of the answer, and `most_bytes` the answer once decoded.
    """
    return {"timeout": {"connect": connect_s, "read": idle_s}, "whole_s": whole_s, "most_bytes": most_bytes}


def fault_of(response: httpx.Response) -> BodyError | None:
    """Why the body of an answer could not be had; it is empty then."""
    return response.extensions.get("fault")


@cache
def tls_context() -> ssl.SSLContext:
    """The usual certificates, whatever the environment says. Reading them takes longer than a hundred requests."""
    return httpx.create_ssl_context(verify=True, trust_env=False)


class _Body(httpx.AsyncByteStream):
    """A whole body, in one piece."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


class _Answer(httpx.Response):
    """An answer whose body is whole and decoded.

    Given to httpx as its content, that would go through a decoder and a list of pieces: 17 of 20 microseconds.
    """

    def __init__(
        self,
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        fault: BodyError | None,
        request: httpx.Request,
    ) -> None:
        super().__init__(status, headers=headers, stream=_Body(body), extensions={"fault": fault}, request=request)
        self._content = body


class Transport(httpx.AsyncBaseTransport):
    """Sends requests; every failure is a `NeverSentError` or a `MaybeSentError`, with a short text that holds no URL.

    Each request brings its `bounds`; how many are open is the caller's to bound. An answer comes whole, or with its
    `fault_of`. A POST is never sent twice, a GET may be, on a connection that turns out to be closed. `sockets`, when
    given, makes the socket for each address about to be connected to, and may refuse it. Make it inside a running event
    loop.
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

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange. Raises while not even the head of an answer is there; what goes wrong later is a fault."""
        allowed = request.extensions
        response: ClientResponse | None = None
        body: bytes = b""
        fault: BodyError | None = None
        try:
            async with asyncio.timeout(allowed["whole_s"]):
                where, headers = _translated(request)
                with _plain_errors():
                    response = await self._session.request(
                        request.method,
                        where,
                        headers=headers,
                        data=request.content or None,
                        allow_redirects=False,
                        timeout=_timeout(**allowed["timeout"]),
                    )
                most: int = allowed["most_bytes"]
                body = await _whole_body(
                    response, most if response.status in SUCCESSES else min(most, _MAX_REFUSAL_BYTES)
                )
        except BodyError as error:
            fault = error
        except TimeoutError:
            fault = BodyError(f"no whole answer within {allowed['whole_s']:g} s")
        finally:
            if response is not None:
                # A connection whose answer was not read to its end is closed, not used again.
                response.release()
        if response is None:
            raise MaybeSentError(str(fault or "no answer"))
        # The body is decoded, and httpx would do it again.
        headers = [header for header in response.raw_headers if header[0].lower() != b"content-encoding"]
        return _Answer(response.status, headers, body, fault, request)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


def _translated(request: httpx.Request) -> tuple[URL, CIMultiDict[str]]:
    """Its URL and headers as aiohttp has them; kept with it, as the same request is sent again for each poll."""
    found = request.extensions.get("translated")
    if found is None:
        # As httpx's own mapping, aiohttp would look each name up, and decode all of them for each.
        found = _where(request.url), CIMultiDict(request.headers.multi_items())
        request.extensions["translated"] = found
    return found


def _where(url: httpx.URL) -> URL:
    try:
        # As it stands: it is quoted already, and a signature holds for just these characters.
        where = URL(str(url), encoded=True)
        # Read only when they are asked for.
        _ = where.host, where.port
    except ValueError as error:
        raise BadUrlError("the URL can't be connected to") from error
    return where


async def _whole_body(response: ClientResponse, most: int) -> bytes:
    """The whole body, at most `most` bytes once decoded. Raises `BodyError`, and `TooLargeError` without reading on.

    A body of the length that was announced, or none at all, is whole.
    """
    head = response.headers
    length = _digits(head.get("content-length", ""))
    if length is not None and length > most:
        raise TooLargeError(f"larger than {most} bytes")
    try:
        with _plain_errors():
            if length and "content-encoding" not in head:
                return await response.read()
            # What is compressed or of unknown length is read with care.
            return await _careful_body(response, most)
    except MaybeSentError as error:
        raise BodyError(str(error)) from error
    except zlib.error as error:
        raise BodyError("the answer is not compressed as it says") from error


async def _careful_body(response: ClientResponse, most: int) -> bytes:
    pieces: list[bytes] = []
    room = most
    inflate = _inflater(response.headers.get("content-encoding", "identity"))
    async for piece in response.content.iter_chunked(_CHUNK_BYTES):
        # One byte more than there is room for is enough to know; a bomb is not inflated any further.
        plain = piece if inflate is None else inflate.decompress(piece, room + 1)
        room -= len(plain)
        if room < 0:
            raise TooLargeError(f"larger than {most} bytes")
        pieces.append(plain)
    if inflate is not None and pieces and not inflate.eof:
        raise BodyError("the compressed answer ended before it was whole")
    return b"".join(pieces)


def _digits(length: str) -> int | None:
    return int(length) if length.isdecimal() and len(length) < _MAX_LENGTH_DIGITS else None


@cache
def _timeout(connect: float, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=connect, sock_read=read)


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
        raise BadUrlError("the URL can't be connected to") from error
    except TimeoutError as error:
        raise MaybeSentError("no answer in time") from error
    except aiohttp.ServerDisconnectedError as error:
        raise MaybeSentError("the server closed the connection without an answer") from error
    except aiohttp.ClientPayloadError as error:
        raise MaybeSentError("the answer ended before it was whole") from error
    except aiohttp.ClientResponseError as error:
        raise MaybeSentError("the answer is not HTTP") from error
    # RuntimeError: what uvloop raises when it writes to a transport that has just been closed.
    # ValueError: what can't be written as bytes, such as the name of a user in a URL.
    except (aiohttp.ClientError, OSError, RuntimeError, ValueError) as error:
        raise MaybeSentError(f"the connection broke ({type(error).__name__})") from error


def _why_not_connected(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name can't be resolved"
    cause = error.os_error
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or type(cause).__name__}"
    # Not the error's own text: the event loop puts the address into it.
    return (os.strerror(cause.errno) if cause.errno else type(cause).__name__).lower()
