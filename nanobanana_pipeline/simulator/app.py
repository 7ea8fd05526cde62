"""HTTP faces of the provider: its API origin, its images' origin, and the control of both for tests.

Submits, polls and pictures are answered by plain ASGI, as they are what a benchmark waits for; the rest is Starlette.
No decision about a task is made here.
"""

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.simulator.faults import FaultScript, parse_rules
from nanobanana_pipeline.simulator.images import ImageOrigin
from nanobanana_pipeline.simulator.provider import Caller, Provider
from nanobanana_pipeline.simulator.replies import Reply, error_detail
from nanobanana_pipeline.simulator.validation import MAX_BODY_BYTES

TRANSPORT = "nanobanana_pipeline.transport"
_TELLING_KEY_CHARS = 8  # a shorter key may well be part of an innocent word
_ENDLESS_CHUNK = b"\x89PNG\r\n\x1a\n" + bytes(65_528)

Headers = list[tuple[bytes, bytes]]


class ApiOrigin:
    """The API: submit and poll by hand, the rest by Starlette."""

    def __init__(self, provider: Provider, rest: ASGIApp) -> None:
        self._provider = provider
        self._rest = rest
        self._submit_path = provider.spec.api.submit_path
        self._task_prefix = provider.spec.api.task_path.partition("{id}")[0]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path: str = scope["path"]
        stats = self._provider.stats
        if path == self._submit_path and scope["method"] == "POST":
            with stats.open_request("submit"):
                reply = self._provider.submit(_caller(scope["headers"]), await _body(receive))
                await _deliver(self._provider, reply, scope, receive, send)
        elif path.startswith(self._task_prefix) and scope["method"] == "GET":
            with stats.open_request("poll"):
                reply = self._provider.poll(_caller(scope["headers"]), path[len(self._task_prefix) :])
                await _deliver(self._provider, reply, scope, receive, send)
        else:
            await self._rest(scope, receive, send)


class PictureOrigin:
    """The images' origin. A token that comes here has leaked, and is booked as such."""

    def __init__(self, provider: Provider, images: ImageOrigin) -> None:
        self._provider = provider
        self._images = images

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path: str = scope["path"]
        query: str = scope["query_string"].decode("latin-1")
        if _holds_token(scope, self._provider.options.api_key):
            self._provider.note_token_leak("images", path)
        with self._provider.stats.open_request("image"):
            if scope["method"] in ("GET", "HEAD"):
                reply = await self._images.answer(path, query)
            else:
                reply = error_detail(405, "method not allowed")
            self._provider.stats.image_bytes += len(reply.body)
            await _deliver(self._provider, reply, scope, receive, send)


def build_apps(provider: Provider, images: ImageOrigin) -> tuple[ASGIApp, ASGIApp]:
    """The applications of the two origins: API, images."""
    control = Control(provider)
    rest = Starlette(
        routes=[
            Route("/", control.about),
            Route("/simulator/book", control.book),
            Route("/simulator/stats", control.stats),
            Route("/simulator/faults", control.faults, methods=["GET", "POST"]),
            Route("/simulator/advance", control.advance, methods=["POST"]),
            Route("/api/v1/skill/models", control.models),
            Route("/api/v1/skill/models/{model}/spec", control.model_spec),
            Route(
                "/{path:path}", control.unknown, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
            ),
        ]
    )
    return ApiOrigin(provider, rest), PictureOrigin(provider, images)


class Control:
    """What is neither submit nor poll: the front page, the models' catalogue, and the hands of a test."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def about(self, _request: Request) -> Response:
        """`GET /`: that this is a simulator, and where its pictures are."""
        about = {
            "service": "nanobanana_pipeline simulator",
            "model": self._provider.spec.name,
            "images_url": self._provider.images_origin,
        }
        return JSONResponse(about)

    async def book(self, _request: Request) -> Response:
        """`GET /simulator/book`: every row."""
        self._provider.clock.settle()
        return Response(orjson.dumps(self._provider.book.rows()), media_type="application/json")

    async def stats(self, _request: Request) -> Response:
        """`GET /simulator/stats`: the counts."""
        self._provider.clock.settle()
        return JSONResponse(self._provider.stats.as_json())

    async def faults(self, request: Request) -> Response:
        """`GET /simulator/faults`: the rules in force; a posted script (JSON, or TOML by type) replaces them."""
        if request.method == "POST":
            toml = "toml" in request.headers.get("content-type", "")
            try:
                text = (await request.body()).decode()
                self._provider.faults = FaultScript(parse_rules(text, toml=toml))
            except (UserError, UnicodeDecodeError) as error:
                return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"rules": self._provider.faults.rules})

    async def advance(self, request: Request) -> Response:
        """`POST /simulator/advance {"seconds": N}`: skip simulated time."""
        try:
            seconds = float((await request.json())["seconds"])
        except (KeyError, TypeError, ValueError, json.JSONDecodeError):
            seconds = -1.0
        if not 0 <= seconds < 10**10:
            return JSONResponse({"error": 'send {"seconds": N}, N zero or more'}, 400)
        self._provider.clock.advance(seconds)
        return JSONResponse({"now": self._provider.clock.now()})

    async def models(self, _request: Request) -> Response:
        """`GET /api/v1/skill/models`: the catalogue that the provider's command line reads."""
        listed = [{"id": self._provider.spec.name, "name": self._provider.spec.title, "type": "image"}]
        return _enveloped({"models": listed, "total": 1, "page": 1, "page_size": 20, "total_pages": 1})

    async def model_spec(self, request: Request) -> Response:
        """`GET /api/v1/skill/models/{model}/spec`: parameters and endpoint, for the same command line."""
        spec = self._provider.spec
        if request.path_params["model"] != spec.name:
            return _enveloped(None, 404, "model not found")
        return _enveloped(
            {
                "model_id": spec.name,
                "name": spec.title,
                "type": "image",
                "api": {
                    "endpoint": f"{request.base_url}".rstrip("/") + spec.api.submit_path,
                    "method": "POST",
                    "headers": {},
                },
                "parameters": [
                    {"name": "prompt", "type": "string", "required": True},
                    {"name": "image_urls", "type": "array", "required": False},
                    _choice("aspect_ratio", spec.aspect_ratios),
                    _choice("resolution", spec.resolutions),
                    {"name": "response_modalities", "type": "array", "required": False},
                ],
            }
        )

    async def unknown(self, request: Request) -> Response:
        """Any other path; a token has no business there."""
        if request.url.path.startswith(self._provider.spec.api.submit_path):
            return JSONResponse({"detail": "method not allowed"}, 405)
        if _holds_token(request.scope, self._provider.options.api_key):
            self._provider.note_token_leak("api", request.url.path)
        return JSONResponse({"detail": "not found"}, 404)


def _choice(name: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"name": name, "type": "string", "required": False, "constraints": {"enum": list(values)}}


def _enveloped(data: Any, code: int = 200, message: str = "ok") -> Response:
    return JSONResponse({"status": {"code": code, "message": message}, "data": data}, code)


def _caller(headers: Headers) -> Caller:
    found = {name: value for name, value in headers if name in _CALLER_HEADERS}
    texts = {name: value.decode("latin-1") for name, value in found.items()}
    return Caller(texts.get(b"authorization"), texts.get(b"idempotency-key"), texts.get(b"x-request-id"))


_CALLER_HEADERS = frozenset((b"authorization", b"idempotency-key", b"x-request-id"))


def _holds_token(scope: Scope, key: str) -> bool:
    """Whether the request has an Authorization header, or the key anywhere in its headers or address."""
    headers: Headers = scope["headers"]
    if any(name == b"authorization" for name, _value in headers):
        return True
    if len(key) < _TELLING_KEY_CHARS:
        return False
    address = unquote(f"{scope['path']}?{scope['query_string'].decode('latin-1')}")
    return key in address or any(key.encode() in value for _name, value in headers)


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False) and len(body) <= MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
    return body


async def _deliver(provider: Provider, reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a reply in the way it asks for, and count it."""
    if reply.delay_s:
        await provider.clock.sleep(reply.delay_s)
    if reply.delivery == "cut_before":
        await _hang_up(scope, receive)
        return
    provider.stats.answers[reply.status] += 1
    await _send(reply, scope, receive, send)


async def _send(reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
    headers: Headers = [(b"content-type", reply.content_type), *reply.headers]
    if reply.delivery == "endless":
        headers.append((b"transfer-encoding", b"chunked"))
    else:
        headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if reply.delivery == "endless":
        await _send_forever(receive, send)
    elif reply.delivery == "cut_within":
        await send(_part(reply.body[: len(reply.body) // 2]))
        await _hang_up(scope, receive)
    else:
        await send({"type": "http.response.body", "body": reply.body})


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _send_forever(receive: Receive, send: Send) -> None:
    gone = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        while not gone.done():
            await send(_part(_ENDLESS_CHUNK))
            await asyncio.sleep(0)
    finally:
        gone.cancel()


async def _hang_up(scope: Scope, receive: Receive) -> None:
    """Close the connection; what was written before still goes out."""
    transport: asyncio.Transport = scope[TRANSPORT]
    transport.close()
    await _wait_for_disconnect(receive)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
