"""An answer before it is sent: what it says, and how its delivery goes wrong.

Only the shapes of answers that any part of the provider can give are here; what a request deserves is decided
elsewhere.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

JSON = b"application/json"
HTML = b"text/html"

Delivery = Literal["whole", "cut_before", "cut_within", "endless"]


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, sent after `delay_s` simulated seconds; `cut_within` drops the connection half-way."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    delay_s: float = 0.0
    delivery: Delivery = "whole"


def json_reply(document: Any, status: int = 200) -> Reply:
    """An answer in JSON."""
    return Reply(status, orjson.dumps(document))


def error_object(status: int, message: str, request_id: str, code: int | None = None) -> Reply:
    """The shape `{"error": {code, message}, "request_id"}`."""
    error = {"code": status if code is None else code, "message": message}
    return json_reply({"error": error, "request_id": request_id}, status)


def error_text(status: int, message: str) -> Reply:
    """The shape `{"error": "text"}`."""
    return json_reply({"error": message}, status)


def error_detail(status: int, message: str) -> Reply:
    """The shape `{"detail": "text"}`."""
    return json_reply({"detail": message}, status)


def gateway_html(status: int, title: str) -> Reply:
    """What a gateway in front of the provider says when it speaks for itself."""
    page = f"<html><head><title>{status} {title}</title></head><body><h1>{status} {title}</h1></body></html>\n"
    return Reply(status, page.encode(), HTML)


def rate_limited(retry_after: int | str | None) -> Reply:
    """429, with Retry-After (seconds, or a date as text) unless that is None."""
    headers = () if retry_after is None else ((b"retry-after", str(retry_after).encode()),)
    return replace(error_text(429, "rate limit exceeded"), headers=headers)
