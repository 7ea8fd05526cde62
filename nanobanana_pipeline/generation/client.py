"""The provider, over HTTP: one call, one answer as a value; nothing is tried again here.

Sending, size and time limits, and what a broken connection means for money belong here. What a body says is `wire`'s,
what an error is is `errors`', where a result may come from is `hosts`', and whether to try again is the engine's.
"""

import asyncio
import base64
import binascii
import json
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import quote, unquote_to_bytes

import httpx
from pydantic import SecretStr

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation import wire
from nanobanana_pipeline.generation.answers import (
    Accepted,
    Downloaded,
    DownloadError,
    Polled,
    PollError,
    Probe,
    Refused,
    Unknown,
)
from nanobanana_pipeline.generation.hosts import HostRules, is_private_host, public_socket
from nanobanana_pipeline.generation.transport import (
    SUCCESSES,
    BadUrlError,
    BodyError,
    Bounds,
    MaybeSentError,
    NeverSentError,
    RefusedHostError,
    TooLargeError,
    Transport,
    bounds,
    fault_of,
    tls_context,
)
from nanobanana_pipeline.generation.values import Scrub
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.spec import ModelSpec

SIMULATOR_HEADER = "x-nanobanana-simulator"
MAX_REDIRECTS = 5

_USER_AGENT = "nanobanana-pipeline"
_OK = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429})
_CLIENT_ERRORS = range(400, 500)
_HIDDEN = "***"
# Not orjson: it refuses half a character, which a prompt from elsewhere may hold, and a submit must not raise.
_COMPACT = json.JSONEncoder(separators=(",", ":"))
_LONG_KEY = 12
_MAX_PLACE_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time limits, in seconds.

    `connect_s` bounds looking up, connecting and TLS together; `submit_s`, `poll_s` and `download_s` a whole request
    with its whole answer, connecting included; `idle_s` the silence between two pieces of a download. `submit_s` bounds
    how long a submit can be in the air: taking over a dead worker's lease has to wait for it.
    """

    connect_s: float = 10.0
    submit_s: float = 120.0
    poll_s: float = 30.0
    download_s: float = 180.0
    idle_s: float = 30.0

    def __post_init__(self) -> None:
        # Else a connection that never opened could not be told from a lost answer.
        if not 0 < self.connect_s < min(self.submit_s, self.poll_s, self.download_s):
            raise ValueError(f"connect_s={self.connect_s} must be above 0 and below the limits of whole requests")


class Provider(Protocol):
    """What the engine needs of a provider. No method raises for anything that a provider or a network can do."""

    async def submit(self, request: Request, idempotency_key: str) -> Accepted | Refused | Unknown:
        """Ask for a task, once. `idempotency_key` names the attempt: printable ASCII."""
        ...

    async def poll(self, task_id: str) -> Polled | PollError:
        """Ask how a task is."""
        ...

    async def download(self, url: str) -> Downloaded | DownloadError:
        """Fetch a result, whole, exactly as sent."""
        ...

    async def aclose(self) -> None:
        """Let the connections go."""
        ...


class HttpProvider:
    """The task API over HTTP. Open it inside a running event loop, as an async context manager.

    The key goes to the API's origin alone, in one header, and into nothing that is returned or raised. Results are
    fetched over other connections, without it. `image_hosts` are the hosts that results may come from (empty: any
    public one); private addresses are refused unless the API itself is on one. How many requests are open at once is
    the caller's to bound.
    """

    def __init__(
        self,
        spec: ModelSpec,
        api_key: SecretStr | None,
        *,
        base_url: str | None = None,
        image_hosts: tuple[str, ...] = (),
        timeouts: Timeouts | None = None,
    ) -> None:
        """Raises `UserError` for a base URL that is none, and for a key that no header can hold."""
        self._spec = spec
        self._base = _checked_base_url(base_url or spec.api.base_url)
        key = _checked_key(api_key)
        self._scrub = _scrubber(key)
        self._timeouts = timeouts or Timeouts()
        self._image_hosts = image_hosts
        self._hosts = HostRules(image_hosts)
        plain = {"user-agent": _USER_AGENT, "accept": "*/*", "accept-encoding": "identity"}
        self._plain_headers = httpx.Headers(plain)
        token = {"authorization": f"Bearer {key}"} if key else {}
        self._poll_headers = httpx.Headers({**plain, "accept": "application/json", **token})
        self._submit_headers = httpx.Headers({**self._poll_headers, "content-type": "application/json"})
        self._task_url = self._base + spec.api.task_path
        self._submit_url = httpx.URL(self._base + spec.api.submit_path)
        within, most = self._timeouts, spec.limits.max_answer_bytes
        self._submit_bounds = bounds(connect_s=within.connect_s, whole_s=within.submit_s, most_bytes=most)
        self._poll_bounds = bounds(connect_s=within.connect_s, whole_s=within.poll_s, most_bytes=most)
        # As a whole, a download is bounded over all its redirects.
        self._download_bounds = bounds(
            connect_s=within.connect_s, idle_s=within.idle_s, most_bytes=spec.limits.max_image_bytes
        )
        # A task is asked about several times in the same words; making them anew was 9 % of a run under Python's lock.
        self._questions: dict[str, httpx.Request] = {}
        self._api: Transport | None = None
        self._images: Transport | None = None

    def __repr__(self) -> str:
        return f"HttpProvider({self.origin})"

    @property
    def origin(self) -> str:
        """The API's origin, `scheme://host[:port]`."""
        return _origin(self._submit_url)

    async def __aenter__(self) -> Self:
        private = await is_private_host(self._submit_url.host)
        self._hosts = HostRules(self._image_hosts, private_ok=private)
        tls = tls_context()
        self._api = Transport(tls)
        # Connections of their own, so that nothing of the API's (a header, a cookie) can come along.
        self._images = Transport(tls, sockets=None if private else public_socket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let the connections go. What is in the air fails as sent without an answer."""
        for transport in (self._api, self._images):
            if transport is not None:
                await transport.aclose()

    async def submit(self, request: Request, idempotency_key: str) -> Accepted | Refused | Unknown:
        """Ask for a task, once: a POST is never sent again by itself, here or below.

        `Refused` when there is certainly no task: the API said so, or no connection was opened. `Unknown` whenever the
        request may have arrived and no readable answer came: cut, late, garbled or too large.
        """
        headers = self._submit_headers.copy()
        # The provider documents neither as a promise; both help to find a request in its logs.
        headers["x-request-id"] = headers["idempotency-key"] = idempotency_key
        body = _COMPACT.encode(wire.submit_body(request, self._spec)).encode()
        message = httpx.Request("POST", self._submit_url, headers=headers, content=body, extensions=self._submit_bounds)
        try:
            answer = await self._ask(message)
        except NeverSentError as error:
            return Refused(ErrorKind.RETRYABLE, None, f"no connection to {self.origin}: {error}")
        except _UnreadableSuccessError as error:
            return Unknown(str(error), error.status)
        except MaybeSentError as error:
            return Unknown(str(error))
        return wire.parse_submit(answer.status_code, answer.headers, answer.content, self._spec, scrub=self._scrub)

    async def poll(self, task_id: str) -> Polled | PollError:
        """Ask how a task is."""
        message = self._questions.get(task_id)
        if message is None:
            url = self._task_url.replace("{id}", quote(task_id, safe=""))
            message = self._questions[task_id] = _question(url, self._poll_headers, self._poll_bounds)
        try:
            answer = await self._ask(message)
        except _UnreadableSuccessError as error:
            return PollError(ErrorKind.RETRYABLE, str(error), error.status)
        except (NeverSentError, MaybeSentError) as error:
            return PollError(ErrorKind.RETRYABLE, f"{self.origin}: {error}")
        polled = wire.parse_poll(answer.status_code, answer.headers, answer.content, self._spec, scrub=self._scrub)
        if isinstance(polled, Polled) and polled.task.state != "running":
            self._questions.pop(task_id, None)
        return polled

    async def download(self, url: str) -> Downloaded | DownloadError:
        """Fetch a result, whole, exactly as sent, without the token; each of up to five redirects meets the host rules.

        A `data:` URL is decoded in place.
        """
        if url[:5].lower() == "data:":
            return _inline(url, self._spec.limits.max_image_bytes)
        try:
            async with asyncio.timeout(self._timeouts.download_s):
                return await self._follow(url)
        except TimeoutError:
            return DownloadError("retryable", f"{_place(url)}: not whole within {self._timeouts.download_s:g} s")

    async def probe(self) -> Probe:
        """See who answers at the API's origin, without the token. Raises `UserError` when nobody does."""
        try:
            answer = await self._ask(_question(f"{self._base}/", self._plain_headers, self._poll_bounds))
        except _UnreadableSuccessError:
            return Probe(self.origin, simulated=False)
        except (NeverSentError, MaybeSentError) as error:
            raise UserError(
                f"can't reach the API at {self.origin}: {error}; check the network and NANOBANANA_BASE_URL"
            ) from None
        return Probe(self.origin, simulated=answer.headers.get(SIMULATOR_HEADER) == "1")

    async def _ask(self, message: httpx.Request) -> httpx.Response:
        """One exchange with the API. Raises `NeverSentError`, or `MaybeSentError` when no readable answer came.

        Without its body a success says nothing, but a refusal is one by its status alone: it comes back with an empty
        body.
        """
        answer = await _opened(self._api).handle_async_request(message)
        fault = fault_of(answer)
        if fault is not None and answer.status_code in SUCCESSES:
            raise _UnreadableSuccessError(answer.status_code, fault)
        return answer

    async def _follow(self, url: str) -> Downloaded | DownloadError:
        for _ in range(MAX_REDIRECTS + 1):
            step = await self._hop(url)
            if not isinstance(step, str):
                return step
            url = step
        return DownloadError("expired", f"{_place(url)}: more than {MAX_REDIRECTS} redirects")

    async def _hop(self, url: str) -> Downloaded | DownloadError | str:
        """One hop of a download: the result, why there is none, or the URL to go to next."""
        target = _parsed(url)
        if target is None or not _is_http(target):
            return _no_url(url)
        objection = self._hosts.objection(target)
        if objection:
            return DownloadError("refused_host", f"{_place(url)}: {objection}")
        return await self._fetched(target, url)

    async def _fetched(self, target: httpx.URL, url: str) -> Downloaded | DownloadError | str:
        message = _question(target, self._plain_headers, self._download_bounds)
        try:
            answer = await _opened(self._images).handle_async_request(message)
        except BadUrlError:
            return _no_url(url)
        except RefusedHostError as error:
            return DownloadError("refused_host", f"{_place(url)}: {error}")
        except (NeverSentError, MaybeSentError) as error:
            return DownloadError("retryable", f"{_place(url)}: {error}")
        if answer.status_code != _OK:
            return _elsewhere(answer, target, _place(url))
        if not answer.content:
            fault = fault_of(answer)
            kind = "bad_output" if isinstance(fault, TooLargeError) else "retryable"
            return DownloadError(kind, f"{_place(url)}: {fault or 'an empty answer'}", _OK)
        return Downloaded(answer.content, _media_type(answer.headers.get("content-type", "")))


class _UnreadableSuccessError(MaybeSentError):
    """The API said yes, and the rest of what it said can't be read."""

    def __init__(self, status: int, fault: BodyError) -> None:
        super().__init__(f"HTTP {status}, but {fault}")
        self.status = status


def _question(url: httpx.URL | str, headers: httpx.Headers, within: Bounds) -> httpx.Request:
    return httpx.Request("GET", url, headers=headers, extensions=within)


def _opened(transport: Transport | None) -> Transport:
    if transport is None:
        raise RuntimeError(
            "HttpProvider is used as an async context manager: `async with HttpProvider(...) as provider`"
        )
    return transport


def _no_url(url: str) -> DownloadError:
    return DownloadError("bad_output", f"{_place(url)} is not an http or https URL")


def _elsewhere(answer: httpx.Response, target: httpx.URL, place: str) -> DownloadError | str:
    """What an answer other than 200 to a download means: a place to go to, or why the result is not here."""
    status = answer.status_code
    if status in _REDIRECTS and "location" in answer.headers:
        try:
            return str(target.join(answer.headers["location"]))
        except (httpx.InvalidURL, ValueError):
            return DownloadError("expired", f"{place}: a redirect to what is no URL", status)
    # A URL that is refused for good may have a successor: its task is asked for a fresh one.
    refused = status in _REDIRECTS or (status in _CLIENT_ERRORS and status not in _TRANSIENT)
    return DownloadError("expired" if refused else "retryable", f"{place}: HTTP {status}", status)


def _inline(url: str, most: int) -> Downloaded | DownloadError:
    """The content of a `data:` URL."""
    head, _, payload = url[5:].partition(",")
    kind, *options = head.split(";")
    if len(payload) > most * 2:
        return DownloadError("bad_output", f"the data: URL holds more than {most} bytes")
    data = unquote_to_bytes(payload)
    if "base64" in (option.strip().lower() for option in options):
        try:
            data = base64.b64decode(data)
        except binascii.Error:
            return DownloadError("bad_output", "the data: URL holds no base64")
    if not 0 < len(data) <= most:
        return DownloadError("bad_output", f"the data: URL holds {len(data)} bytes (at most {most})")
    return Downloaded(data, _media_type(kind))


def _media_type(content_type: str) -> str | None:
    return content_type.partition(";")[0].strip().lower() or None


def _parsed(url: str) -> httpx.URL | None:
    try:
        parsed = httpx.URL(url)
        # A name in punycode is read only when it is asked for, and may be none.
        _ = parsed.host
    except (httpx.InvalidURL, ValueError):
        return None
    return parsed


def _is_http(url: httpx.URL) -> bool:
    return url.scheme in {"http", "https"} and bool(url.host)


def _place(url: str) -> str:
    """A URL as it may be shown: without its query (signatures) and its user (passwords)."""
    parsed = _parsed(url)
    if parsed is None:
        return "the result's URL"
    # The path as it is sent: unquoted, it could hold line breaks.
    path = parsed.raw_path.partition(b"?")[0].decode("ascii", "replace")
    return f"{_origin(parsed)}{path}"[:_MAX_PLACE_CHARS]


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


def _checked_base_url(base_url: str) -> str:
    """The base URL without its last slash. Raises `UserError` when requests can't be sent below it."""
    url = _parsed(base_url)
    if url is None or not _is_http(url):
        raise UserError("the API's base URL is not an http or https URL; correct NANOBANANA_BASE_URL")
    if url.userinfo or url.query or url.fragment:
        raise UserError(
            f"the API's base URL at {_origin(url)} must hold no user, query or fragment; correct NANOBANANA_BASE_URL"
        )
    return str(url).rstrip("/")


def _checked_key(api_key: SecretStr | None) -> str:
    """The key as it is sent, empty for none. Raises `UserError` when a header can't hold it."""
    key = api_key.get_secret_value().strip() if api_key else ""
    if not all("!" <= char <= "~" for char in key):
        raise UserError("NANOBANANA_API_KEY holds a space, a line break or a letter beyond ASCII; set it again")
    return key


def _scrubber(key: str) -> Scrub:
    """Takes the key out of a text: providers do repeat it, in "invalid key: …" for one."""
    if not key:
        return _unchanged
    forms = "|".join(re.escape(form) for form in {key, quote(key, safe=""), key.replace("/", "\\/")})
    # A key of few letters (in development) may be a part of many words, and of URLs that are needed.
    pattern = re.compile(forms if len(key) >= _LONG_KEY else rf"(?<![\w-])(?:{forms})(?![\w-])")
    return lambda text: pattern.sub(_HIDDEN, text)


def _unchanged(text: str) -> str:
    return text
