"""Addresses of pictures: signed, short-lived, on the images' origin, good across restarts.

An address is made when it is told, never stored: after a restart the origin may have another port.
"""

import hmac
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs

_PREFIX = "/images/"


@dataclass(frozen=True, slots=True)
class Link:
    """What a picture's address says: the task, which of its pictures, and which telling of the address this is."""

    task_id: str
    number: int
    issue: int


class Links:
    """Makes and checks addresses."""

    def __init__(self, origin: str, *, secret: str, lifetime_s: float) -> None:
        self._origin = origin
        self._secret = secret.encode()
        self._lifetime_s = lifetime_s

    def make(self, link: Link, extension: str, now: float) -> str:
        """The address of a picture, good until `now` plus the lifetime (simulated seconds)."""
        expires = int(now + self._lifetime_s)
        query = f"expires={expires}&issue={link.issue}&signature={self._sign(link, expires)}"
        return f"{self._origin}{_PREFIX}{link.task_id}/{link.number}.{extension}?{query}"

    def read(self, path: str, query: str, now: float) -> Link | Literal["unknown", "forged", "expired"]:
        """The link that an address on the images' origin holds, or why there is none."""
        task_id, _, name = path.removeprefix(_PREFIX).partition("/")
        number = name.partition(".")[0]
        if not path.startswith(_PREFIX) or not task_id or not number.isdecimal():
            return "unknown"
        values = parse_qs(query)
        expires, issue, signature = (values.get(key, [""])[0] for key in ("expires", "issue", "signature"))
        if not expires.isdecimal() or not issue.isdecimal():
            return "forged"
        link = Link(task_id, int(number), int(issue))
        if not hmac.compare_digest(signature.encode(), self._sign(link, int(expires)).encode()):
            return "forged"
        return "expired" if int(expires) < now else link

    def _sign(self, link: Link, expires: int) -> str:
        text = f"{link.task_id}/{link.number}/{link.issue}/{expires}"
        return hmac.digest(self._secret, text.encode(), "sha256").hex()[:32]
