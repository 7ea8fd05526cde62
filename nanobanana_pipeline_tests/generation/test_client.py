"""The HTTP client: what each way to fail means for money, and where the key may never go."""

import asyncio
import base64
import contextlib
import gzip
import json
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
import uvloop
from pydantic import SecretStr

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.answers import (
    Accepted,
    Downloaded,
    DownloadError,
    Polled,
    PollError,
    Refused,
    Unknown,
)
from nanobanana_pipeline.generation.client import MAX_REDIRECTS, HttpProvider, Timeouts
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.transport import Transport, bounds, tls_context
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.raw_server import RawServer, Received, Reply, reply
from nanobanana_pipeline_tests.servers.services import free_port

KEY = "sk-live-abc/def+0123456789"
REQUEST = Request("nano_banana_2", "a harbour at dawn", resolution="1K")
TASK = b'{"id": "task-1", "status": "in_progress", "created_at": 1760000000000, "model": "nano_banana_2"}'
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 3000
SHORT = Timeouts(connect_s=0.9, submit_s=1.0, poll_s=1.0, download_s=1.0, idle_s=0.9)

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a test's coroutine, on both event loops: they report broken connections by different exceptions."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def run_(body: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(body)

    return run_


def provider(
    base_url: str, *, timeouts: Timeouts | None = None, image_hosts: tuple[str, ...] = (), spec: ModelSpec | None = None
) -> HttpProvider:
    """The client under test."""
    return HttpProvider(
        spec or load_spec(), SecretStr(KEY), base_url=base_url, image_hosts=image_hosts, timeouts=timeouts
    )


def small(*, answer: int = 1 << 20, image: int = 1 << 20) -> ModelSpec:
    """The model spec with small bounds on bodies, in bytes."""
    spec = load_spec()
    limits = spec.limits.model_copy(update={"max_answer_bytes": answer, "max_image_bytes": image})
    return spec.model_copy(update={"limits": limits})


def time_for(answer: Reply) -> Timeouts | None:
    """Little for what never comes; for all else as much as a busy machine takes, or it would seem never to come."""
    return SHORT if answer.then in {"hang", "trickle"} else None


async def submit_to(answer: Reply, *, timeouts: Timeouts | None = None, spec: ModelSpec | None = None) -> Any:
    """The outcome of one submit that the server answers so; it must have arrived exactly once."""
    async with RawServer(lambda _: answer) as server, provider(server.url, timeouts=timeouts, spec=spec) as client:
        outcome = await client.submit(REQUEST, "attempt-1")
        assert len(server.requests) == 1
        return outcome


async def download_from(answer: Reply, *, timeouts: Timeouts | None = None, spec: ModelSpec | None = None) -> Any:
    """The outcome of one download that the server answers so."""
    async with RawServer(lambda _: answer) as server, provider(server.url, timeouts=timeouts, spec=spec) as client:
        return await client.download(f"{server.url}/pictures/1.png?signature=secret")


def test_an_answer_is_httpxs_and_can_be_read_in_each_of_its_ways(run: Run) -> None:
    """Its body is handed over whole, past httpx's own reading, and yet it is what any other transport would give."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, TASK)) as server:
            transport = Transport(tls_context())
            within = bounds(connect_s=10, whole_s=30, most_bytes=1 << 20)
            answer = await transport.handle_async_request(httpx.Request("GET", server.url, extensions=within))
            await transport.aclose()
        assert (answer.status_code, answer.content, answer.text) == (200, TASK, TASK.decode())
        assert answer.json()["id"] == "task-1"
        assert await answer.aread() == TASK
        assert [piece async for piece in answer.aiter_bytes()] == [TASK]
        assert [piece async for piece in answer.aiter_raw()] == [TASK]

    run(body())


# Submitting: refused, or unknown


def test_a_submit_is_one_request_in_the_shape_of_the_page(run: Run) -> None:
    """The provider sees the token, JSON, the attempt's id, and nothing for what the row leaves open."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, TASK)) as server, provider(server.url + "/") as client:
            outcome = await client.submit(REQUEST, "attempt-1")
        assert isinstance(outcome, Accepted)
        assert outcome.task.id == "task-1"
        (seen,) = server.requests
        assert (seen.method, seen.target) == ("POST", "/model/v1/generation")
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert seen.headers["content-type"] == "application/json"
        assert seen.headers["x-request-id"] == seen.headers["idempotency-key"] == "attempt-1"
        assert json.loads(seen.body) == {
            "model": "nano_banana_2",
            "input": [{"params": {"prompt": "a harbour at dawn", "resolution": "1K"}}],
        }

    run(body())


def test_the_api_may_be_below_a_path(run: Run) -> None:
    """Gateways of a company often are, and a poll must go where the submit went."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, TASK)) as server, provider(f"{server.url}/ai/v9/") as client:
            assert isinstance(await client.submit(REQUEST, "attempt-1"), Accepted)
            assert isinstance(await client.poll("task-1"), Polled)
            assert (await client.probe()).origin == server.url
        assert [seen.target for seen in server.requests] == [
            "/ai/v9/model/v1/generation",
            "/ai/v9/model/v1/generation/task/task-1",
            "/ai/v9/",
        ]

    run(body())


def test_any_prompt_can_be_sent(run: Run) -> None:
    """Emoji, half a character and control characters arrive as JSON; a prompt must not raise on the way out."""
    prompt = 'a "cat"\n\x00 \U0001f431 é \ud800'

    async def body() -> None:
        async with RawServer(lambda _: reply(200, TASK)) as server, provider(server.url) as client:
            assert isinstance(await client.submit(Request("nano_banana_2", prompt), "attempt-1"), Accepted)
        assert json.loads(server.requests[0].body)["input"][0]["params"]["prompt"] == prompt

    run(body())


def test_a_refused_connection_is_no_unknown(run: Run) -> None:
    """Nothing left, so nothing can be billed: holding the item for a person would stop work for no reason."""

    async def body() -> None:
        async with provider(f"http://127.0.0.1:{free_port()}") as client:
            outcome = await client.submit(REQUEST, "attempt-1")
        assert isinstance(outcome, Refused)
        assert outcome.kind is ErrorKind.RETRYABLE
        assert "refused" in outcome.message

    run(body())


def test_a_name_that_does_not_resolve_is_no_unknown(run: Run) -> None:
    """A typing error in the base URL, or no network at all."""

    async def body() -> None:
        async with provider("https://nowhere.invalid") as client:
            outcome = await client.submit(REQUEST, "attempt-1")
        assert isinstance(outcome, Refused)
        assert outcome.kind is ErrorKind.RETRYABLE

    run(body())


def test_a_failed_handshake_is_no_unknown(run: Run) -> None:
    """TLS comes before the first byte of the request: a wrong certificate can't have cost money."""

    async def body() -> None:
        async with (
            RawServer(lambda _: reply(200, TASK)) as server,
            provider(server.url.replace("http:", "https:"), timeouts=SHORT) as client,
        ):
            outcome = await client.submit(REQUEST, "attempt-1")
            assert isinstance(outcome, Refused)
            assert outcome.kind is ErrorKind.RETRYABLE
            assert server.requests == []

    run(body())


def test_a_connection_that_takes_too_long_is_no_unknown(run: Run) -> None:
    """A host that drops packets: the limit on connecting strikes before the one on answers."""

    async def body() -> None:
        with socket.socket() as listener, contextlib.ExitStack() as queue:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            # Nobody accepts: when the queue is full, the kernel lets further connections wait.
            for _ in range(3):
                waiting = queue.enter_context(socket.socket())
                waiting.setblocking(False)  # noqa: FBT003 - the socket's own signature
                waiting.connect_ex(listener.getsockname())
            async with provider(f"http://127.0.0.1:{listener.getsockname()[1]}", timeouts=SHORT) as client:
                outcome = await client.submit(REQUEST, "attempt-1")
        assert isinstance(outcome, Refused)
        assert outcome.kind is ErrorKind.RETRYABLE

    run(body())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Reply(then="hang"), id="no answer in time"),
        pytest.param(Reply(then="close"), id="closed"),
        pytest.param(Reply(then="reset"), id="reset"),
        pytest.param(Reply(b"HTTP/1.1 200 O", "close"), id="cut in the status"),
        pytest.param(Reply(b"HTTP/1.1 200 OK\r\ncontent-le", "close"), id="cut in the headers"),
        pytest.param(reply(200, TASK, "close", content_length="5000"), id="cut in the body"),
        pytest.param(reply(200, TASK, "reset", content_length="5000"), id="reset in the body"),
        pytest.param(reply(200, TASK, "hang", content_length="5000"), id="stuck in the body"),
        pytest.param(reply(200, gzip.compress(TASK)[:-9], content_encoding="gzip"), id="cut inside gzip"),
        pytest.param(reply(200, TASK, content_encoding="gzip"), id="no gzip"),
        pytest.param(reply(200, TASK, content_encoding="br"), id="not asked for"),
        pytest.param(Reply(b"SSH-2.0-OpenSSH_9.6\r\n", "close"), id="not HTTP"),
        pytest.param(reply(200, b"<html>ok</html>"), id="HTML"),
        pytest.param(reply(200, b""), id="empty"),
        pytest.param(reply(200, b"{}"), id="neither id nor error"),
        pytest.param(reply(502, b"<html>Bad Gateway</html>"), id="502"),
        pytest.param(reply(504), id="504"),
        pytest.param(reply(520), id="unheard-of 5xx"),
        pytest.param(reply(303, location="/elsewhere"), id="see other"),
    ],
)
def test_whatever_happens_after_sending_is_unknown(run: Run, answer: Reply) -> None:
    """The task may exist and be billed: taking any of these for a refusal pays for a second one."""

    async def body() -> None:
        assert isinstance(await submit_to(answer, timeouts=time_for(answer)), Unknown)

    run(body())


@pytest.mark.parametrize("then", ["close", "reset"])
def test_a_post_on_a_dropped_connection_is_never_sent_again(run: Run, then: str) -> None:
    """A kept-alive connection that dies under a POST: the library below must not repeat it, as it does with a GET."""

    def answer(request: Received) -> Reply:
        return reply(200, TASK) if request.headers["x-request-id"] == "attempt-1" else Reply(then=then)

    async def body() -> None:
        async with RawServer(answer) as server, provider(server.url) as client:
            assert isinstance(await client.submit(REQUEST, "attempt-1"), Accepted)
            assert isinstance(await client.submit(REQUEST, "attempt-2"), Unknown)
            assert [seen.connection for seen in server.requests] == [0, 0], "the connection was to be used again"

    run(body())


def test_a_poll_on_a_dropped_connection_is_asked_again(run: Run) -> None:
    """A poll costs nothing, so a stale connection needs no error."""
    seen: list[Received] = []

    def answer(request: Received) -> Reply:
        seen.append(request)
        return Reply(then="close") if len(seen) == 2 else reply(200, TASK)

    async def body() -> None:
        async with RawServer(answer) as server, provider(server.url) as client:
            assert isinstance(await client.poll("task-1"), Polled)
            assert isinstance(await client.poll("task-1"), Polled)
            assert [request.connection for request in server.requests] == [0, 0, 1]

    run(body())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(429, b'{"error": "slow do', "close", content_length="500", retry_after="7"), ErrorKind.RATE_LIMITED),
        (reply(401, b"{}", "hang", content_length="500"), ErrorKind.AUTH),
        (reply(503, b"x" * 4096), ErrorKind.RETRYABLE),
    ],
    ids=["cut", "stuck", "too large"],
)
def test_a_refusal_is_one_by_its_status_alone(run: Run, answer: Reply, kind: ErrorKind) -> None:
    """The provider said no before its body broke off: nothing was billed, whatever the rest would have been."""

    async def body() -> None:
        outcome = await submit_to(answer, timeouts=time_for(answer), spec=small(answer=1024))
        assert isinstance(outcome, Refused)
        assert outcome.kind is kind

    run(body())


def test_a_wait_that_the_provider_asks_for_is_handed_on(run: Run) -> None:
    """Without it, everybody comes back in the same second."""

    async def body() -> None:
        outcome = await submit_to(reply(429, b'{"error": "slow down"}', retry_after="7"))
        assert isinstance(outcome, Refused)
        assert (outcome.kind, outcome.retry_after_s) == (ErrorKind.RATE_LIMITED, 7.0)

    run(body())


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_is_read_up_to_its_limit(run: Run, encoding: str) -> None:
    """A few kilobytes of gzip can hold gigabytes: the limit counts what comes out."""
    bomb = b" " * 5_000_000
    sent = gzip.compress(bomb) if encoding == "gzip" else bomb

    async def body() -> None:
        outcome = await submit_to(reply(200, sent, content_encoding=encoding), spec=small(answer=100_000))
        assert isinstance(outcome, Unknown)
        assert outcome.http_status == 200
        assert "larger than 100000 bytes" in outcome.reason

    run(body())


def test_a_compressed_answer_is_read(run: Run) -> None:
    """Gateways compress without being asked."""

    async def body() -> None:
        assert isinstance(await submit_to(reply(200, gzip.compress(TASK), content_encoding="gzip")), Accepted)

    run(body())


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_submit_is_not_redirected(run: Run, status: int) -> None:
    """Following would hand the token to whoever is named, and a moved API has not taken the task."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, TASK), host="localhost") as other:
            outcome = await submit_to(reply(status, location=f"{other.url}/model/v1/generation"))
            assert isinstance(outcome, Refused)
            assert outcome.kind is ErrorKind.INVALID_REQUEST
            assert "base URL" in outcome.message
            assert other.connections == 0

    run(body())


def test_as_many_requests_are_open_as_the_engine_wants(run: Run) -> None:
    """A pool limit below the engine's own would make items time out in a queue that nobody sees."""
    many = 250

    async def body() -> None:
        all_here = asyncio.Event()

        async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            waiting.append(writer)
            if len(waiting) == many:
                all_here.set()
            await all_here.wait()
            writer.write(reply(200, TASK, connection="close").data)
            writer.close()
            await writer.wait_closed()

        waiting: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(answer_late, "127.0.0.1", 0, backlog=512)
        async with server, provider(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            answers = await asyncio.gather(*(client.poll(f"task-{n}") for n in range(many)))
        assert all(isinstance(answer, Polled) for answer in answers)

    run(body())


# Polling


def test_a_task_is_asked_about_by_its_quoted_id(run: Run) -> None:
    """An id is the provider's own text: it must not reach another path."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, TASK)) as server, provider(server.url) as client:
            await client.poll("a/../b?c#d é")
        (seen,) = server.requests
        assert seen.target == "/model/v1/generation/task/a%2F..%2Fb%3Fc%23d%20%C3%A9"
        assert seen.headers["authorization"] == f"Bearer {KEY}"

    run(body())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Reply(then="hang"), ErrorKind.RETRYABLE),
        (Reply(then="reset"), ErrorKind.RETRYABLE),
        (reply(200, TASK, "close", content_length="5000"), ErrorKind.RETRYABLE),
        (reply(200, b"<html></html>"), ErrorKind.RETRYABLE),
        (reply(307, location="http://127.0.0.1:1/"), ErrorKind.RETRYABLE),
        (reply(502, b"<html></html>"), ErrorKind.RETRYABLE),
        (reply(404, b'{"detail": "no such task"}'), ErrorKind.NOT_FOUND),
        (reply(401), ErrorKind.AUTH),
        (reply(429), ErrorKind.RATE_LIMITED),
    ],
)
def test_a_poll_that_fails_is_no_task_that_fails(run: Run, answer: Reply, kind: ErrorKind) -> None:
    """Taking it for one submits, and pays, again."""

    async def body() -> None:
        async with RawServer(lambda _: answer) as server, provider(server.url, timeouts=time_for(answer)) as client:
            outcome = await client.poll("task-1")
        assert isinstance(outcome, PollError)
        assert outcome.kind is kind

    run(body())


def test_no_submit_outlasts_what_a_take_over_waits_for() -> None:
    """A worker that was cut off may have one on its way: its successor must not take it for answered before its end."""
    assert Timeouts().submit_s <= Patience().submit_timeout_s


# Downloading


def test_a_result_is_fetched_whole_and_without_the_token(run: Run) -> None:
    """The image origin is somebody else's: the token there is a leak, and every byte counts for the checksum."""

    async def body() -> None:
        picture = reply(200, PICTURE, content_type="image/PNG; q=1")
        async with RawServer(lambda _: picture) as server, provider(server.url) as client:
            outcome = await client.download(f"{server.url}/1.png")
        assert outcome == Downloaded(PICTURE, "image/png")
        (seen,) = server.requests
        assert "authorization" not in seen.headers
        assert KEY not in str(seen)

    run(body())


def test_a_signed_url_arrives_as_it_was_given(run: Run) -> None:
    """A signature holds for exactly these characters: another spelling of the URL is refused, and the image lost."""
    target = "/a%2Fb/c%20d.png?X-Amz-Credential=AK%2F2026%2Fs3&sig=ab%2Bc%3D&t=1:2+3&e=%c3%a9"

    async def body() -> None:
        async with RawServer(lambda _: reply(200, PICTURE)) as server, provider(server.url) as client:
            assert isinstance(await client.download(server.url + target), Downloaded)
        assert server.requests[0].target == target

    run(body())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(reply(403, b"expired"), "expired", id="403"),
        pytest.param(reply(404), "expired", id="404"),
        pytest.param(reply(410), "expired", id="410"),
        pytest.param(reply(400, b"<Error>ExpiredToken</Error>"), "expired", id="400"),
        pytest.param(reply(302), "expired", id="redirect to nowhere"),
        pytest.param(reply(302, location="http://127.0.0.1:x/"), "expired", id="redirect to no URL"),
        pytest.param(reply(302, location="ftp://127.0.0.1/1.png"), "bad_output", id="redirect to ftp"),
        pytest.param(reply(500), "retryable", id="500"),
        pytest.param(reply(503), "retryable", id="503"),
        pytest.param(reply(429), "retryable", id="429"),
        pytest.param(reply(204), "retryable", id="204"),
        pytest.param(reply(200), "retryable", id="empty"),
        pytest.param(Reply(then="close"), "retryable", id="closed"),
        pytest.param(Reply(then="hang"), "retryable", id="silent"),
        pytest.param(reply(200, PICTURE[:100], "close", content_length="5000"), "retryable", id="cut"),
        pytest.param(reply(200, PICTURE[:100], "hang", content_length="5000"), "retryable", id="stuck"),
        pytest.param(
            reply(200, gzip.compress(PICTURE)[:-9], content_encoding="gzip"), "retryable", id="cut inside gzip"
        ),
        pytest.param(reply(200, PICTURE[:100], content_length="5000000"), "bad_output", id="announced too large"),
        pytest.param(Reply(b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE, "repeat"), "bad_output", id="endless"),
    ],
)
def test_a_download_fails_in_one_of_four_ways(run: Run, answer: Reply, kind: str) -> None:
    """Paid images hang on it: a URL that has expired is asked for again, a server's bad minute is waited out."""

    async def body() -> None:
        outcome = await download_from(answer, timeouts=time_for(answer), spec=small(image=2_000_000))
        assert isinstance(outcome, DownloadError)
        assert outcome.kind == kind, outcome
        assert "secret" not in outcome.message

    run(body())


def test_a_message_of_a_download_shows_no_more_than_the_place(run: Run) -> None:
    """It goes to logs and tables: no signature, no password, no line break that a path may hide."""

    async def body() -> None:
        async with RawServer(lambda _: reply(403)) as server, provider(server.url) as client:
            place = f"127.0.0.1:{server.port}/a%0Ab%00.png"
            outcome = await client.download(f"http://user:password@{place}?signature=secret#fragment")
        assert outcome == DownloadError("expired", f"http://{place}: HTTP 403", 403)

    run(body())


def test_a_body_that_trickles_for_ever_ends(run: Run) -> None:
    """Each piece comes in time and the size limit is far away: only a limit on the whole ends it."""

    async def body() -> None:
        outcome = await download_from(Reply(b"HTTP/1.1 200 OK\r\n\r\n", "trickle"), timeouts=SHORT)
        assert isinstance(outcome, DownloadError)
        assert outcome.kind == "retryable"
        assert "within 1 s" in outcome.message

    run(body())


def test_a_compressed_result_has_its_limit_too(run: Run) -> None:
    """A download is the larger door for a bomb."""

    async def body() -> None:
        bomb = reply(200, gzip.compress(bytes(5_000_000)), content_encoding="gzip")
        outcome = await download_from(bomb, spec=small(image=100_000))
        assert isinstance(outcome, DownloadError)
        assert outcome.kind == "bad_output"

    run(body())


def test_redirects_of_a_result_are_followed_up_to_five(run: Run) -> None:
    """Storage often hands out a second URL; a ring of them must end."""

    def answer(request: Received) -> Reply:
        left = int(request.target.rpartition("/")[2])
        return reply(200, PICTURE) if left == 0 else reply(302, location=f"./{left - 1}")

    async def body() -> None:
        async with RawServer(answer) as server, provider(server.url) as client:
            assert isinstance(await client.download(f"{server.url}/r/{MAX_REDIRECTS}"), Downloaded)
            assert all("authorization" not in seen.headers for seen in server.requests)
            endless = await client.download(f"{server.url}/r/{MAX_REDIRECTS + 1}")
            assert isinstance(endless, DownloadError)
            assert endless.kind == "expired"

    run(body())


def test_every_hop_meets_the_list_of_hosts(run: Run) -> None:
    """An allowed host that redirects must not lead past the list."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, PICTURE), host="localhost") as other:
            there = reply(302, location=f"{other.url}/1.png")
            async with RawServer(lambda _: there) as server, provider(server.url, image_hosts=("127.0.0.1",)) as client:
                outcome = await client.download(f"{server.url}/1.png")
            assert isinstance(outcome, DownloadError)
            assert outcome.kind == "refused_host"
            assert "NANOBANANA_IMAGE_HOSTS" in outcome.message
            assert other.connections == 0

    run(body())


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0"],  # noqa: S104 - an address to avoid
)
def test_no_result_is_fetched_from_our_own_network(run: Run, host: str) -> None:
    """A URL from outside must not read a machine's metadata service, however it is spelt or resolved."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, PICTURE)) as server, provider("https://8.8.8.8") as client:
            outcome = await client.download(f"http://{host}:{server.port}/latest/meta-data")
            assert isinstance(outcome, DownloadError)
            assert outcome.kind in {"refused_host", "retryable", "bad_output"}
            assert server.connections == 0

    run(body())


def test_a_name_that_leads_to_our_own_network_is_refused_when_connecting(run: Run) -> None:
    """The check is on the address connected to, so a name that resolves otherwise the second time gains nothing."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, PICTURE)) as server, provider("https://8.8.8.8") as client:
            outcome = await client.download(f"http://localhost:{server.port}/1.png")
        assert isinstance(outcome, DownloadError)
        assert outcome.kind == "refused_host"

    run(body())


@pytest.mark.parametrize(
    "url",
    [
        *("", "not a url", "ftp://example.com/1.png", "/1.png", "http://", "http://[::1", "file:///etc/passwd"),
        *("https://xn--a/1.png", "http://127.0.0.1:99999/1.png", "http://127.0.0.1:-1/1.png", "http://\ud800/1.png"),
    ],
)
def test_what_is_no_web_address_is_bad_output(run: Run, url: str) -> None:
    """Asking the task again may give a better one; opening a file of ours would not do."""

    async def body() -> None:
        async with provider("http://127.0.0.1:1") as client:
            outcome = await client.download(url)
        assert isinstance(outcome, DownloadError)
        assert outcome.kind == "bad_output"

    run(body())


def test_a_picture_inside_its_url_is_taken(run: Run) -> None:
    """Some providers answer with `data:`; the same bound on its size holds."""

    async def body() -> None:
        async with provider("http://127.0.0.1:1", spec=small(image=1000)) as client:
            text = base64.b64encode(PICTURE[:600]).decode()
            assert await client.download(f"data:image/png;base64,{text}") == Downloaded(PICTURE[:600], "image/png")
            for wrong in (f"data:image/png;base64,{text * 2}", f"data:image/png;base64,{text * 9}", "data:,", "data:x"):
                assert isinstance(await client.download(wrong), DownloadError)

    run(body())


# The key, and the machine's own settings


def test_the_key_stays_secret(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Providers repeat the key in their errors, and errors end up in logs, tables and tickets."""
    echo = json.dumps({"error": {"code": 401, "message": f"invalid key {KEY}"}, "request_id": KEY}).encode()
    full = json.dumps(
        {
            "id": "task-1",
            "status": KEY,
            "output": [{"type": "image", "url": f"https://example.com/?key={KEY}", "jobId": KEY}, {"type": KEY}],
            "usage": {"note": KEY},
            "metadata": {"headers": {"Authorization": f"Bearer {KEY}", KEY: [KEY]}},
            "error": KEY,
        }
    ).encode()

    async def body() -> None:
        caplog.set_level(logging.DEBUG)
        kept: list[object] = []
        for answer in (reply(401, echo), reply(400, f"<p>{KEY}</p>".encode()), reply(200, full), reply(200, echo)):
            async with RawServer(lambda _, answer=answer: answer) as server, provider(server.url) as client:
                kept += [client, await client.submit(REQUEST, "attempt-1"), await client.poll("task-1")]
                kept += [client.__dict__.get("_submit_headers"), await client.probe()]
        assert len(kept) == 20
        assert KEY not in repr(kept)
        assert "***" in repr(kept)
        assert KEY not in caplog.text

    run(body())


def test_the_key_goes_nowhere_in_a_probe(run: Run) -> None:
    """Who is there is not known yet."""

    async def body() -> None:
        async with RawServer(lambda _: reply(404)) as server, provider(server.url) as client:
            probe = await client.probe()
            assert (probe.origin, probe.simulated) == (server.url, False)
            assert KEY not in str(server.requests)

    run(body())


def test_an_api_that_is_not_there_is_one_line_for_the_user(run: Run) -> None:
    """A run that can't reach its provider says so at once, and what to do."""

    async def body() -> None:
        base_url = f"http://127.0.0.1:{free_port()}"
        async with provider(base_url) as client:
            with pytest.raises(UserError, match=rf"{base_url}.*refused.*NANOBANANA_BASE_URL"):
                await client.probe()

    run(body())


@pytest.mark.parametrize(
    "base_url", ["cloud.example.com", "ftp://example.com", "https://user:pw@example.com", "http://x?y=1"]
)
def test_a_base_url_that_is_none_is_said_at_once(base_url: str) -> None:
    """And the password in it is not repeated."""
    with pytest.raises(UserError, match="NANOBANANA_BASE_URL") as error:
        provider(base_url)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_said_at_once(key: str) -> None:
    """Else the first submit fails with a library's error that has the key in it."""
    with pytest.raises(UserError, match="NANOBANANA_API_KEY") as error:
        HttpProvider(load_spec(), SecretStr(key))
    assert key not in str(error.value)


def test_no_proxy_and_no_netrc_of_the_machine_sees_a_request(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A proxy in the environment would read the token; a .netrc would replace it."""

    async def body() -> None:
        async with RawServer(lambda _: reply(200, TASK)) as proxy, RawServer(lambda _: reply(200, TASK)) as server:
            for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            netrc = tmp_path / "netrc"
            netrc.write_text("machine 127.0.0.1 login somebody password else\n")
            monkeypatch.setenv("NETRC", str(netrc))
            async with provider(server.url) as client:
                await client.submit(REQUEST, "attempt-1")
                await client.download(f"{server.url}/1.png")
            assert proxy.connections == 0
            assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
            assert "authorization" not in server.requests[1].headers

    run(body())


def test_cookies_are_not_kept(run: Run) -> None:
    """A session of one request must not become part of another."""

    async def body() -> None:
        cookie = reply(200, TASK, set_cookie="session=1; Path=/")
        async with RawServer(lambda _: cookie) as server, provider(server.url) as client:
            await client.poll("task-1")
            await client.poll("task-1")
            assert "cookie" not in server.requests[1].headers

    run(body())


# With the simulator


def test_a_task_from_submit_to_picture(run: Run, simulator: Callable[..., SimulatorProcess]) -> None:
    """The whole way, against a server that was written without a look at this client."""
    running = simulator(latency=0.0, sigma=0.0)

    async def body() -> None:
        async with HttpProvider(load_spec(), SecretStr(running.api_key), base_url=running.base_url) as client:
            assert (await client.probe()).simulated
            accepted = await client.submit(REQUEST, "attempt-1")
            assert isinstance(accepted, Accepted)
            assert accepted.task.id is not None
            polled = await client.poll(accepted.task.id)
            while isinstance(polled, Polled) and polled.task.state == "running":
                polled = await client.poll(accepted.task.id)
            assert isinstance(polled, Polled)
            assert polled.task.state == "completed"
            picture = await client.download(polled.task.image_urls[0])
            assert isinstance(picture, Downloaded)
            assert picture.content_type in {"image/png", "image/jpeg", "image/webp"}

    run(body())


SUBMIT_FAULTS = {
    "refused_400_moderation": (Refused, ErrorKind.CONTENT_POLICY),
    "refused_400": (Refused, ErrorKind.INVALID_REQUEST),
    "unauthorised_401": (Refused, ErrorKind.AUTH),
    "balance_403": (Refused, ErrorKind.BALANCE),
    "rate_limited_429": (Refused, ErrorKind.RATE_LIMITED),
    "error_500": (Refused, ErrorKind.RETRYABLE),
    "unavailable_503_html": (Refused, ErrorKind.RETRYABLE),
    "redirect_other_origin": (Refused, ErrorKind.INVALID_REQUEST),
    "error_200": (Refused, None),
    "gateway_502": (Unknown, None),
    "gateway_504": (Unknown, None),
    "answer_lost": (Unknown, None),
    "no_id_200": (Unknown, None),
    "undecodable_200": (Unknown, None),
    "fast_path": (Accepted, None),
    "fast_failed": (Accepted, None),
}


def test_each_fault_of_a_submit_is_read_for_what_it_is(simulator: Callable[..., SimulatorProcess]) -> None:
    """One wrong line here is money: an unknown taken for a refusal, or a refusal held as unknown."""
    running = simulator(latency=0.0)
    running.set_faults([{"fault": fault, "prompt": fault} for fault in SUBMIT_FAULTS])

    async def body() -> dict[str, Any]:
        async with HttpProvider(load_spec(), SecretStr(running.api_key), base_url=running.base_url) as client:
            return {fault: await client.submit(Request("nano_banana_2", fault), fault) for fault in SUBMIT_FAULTS}

    outcomes = asyncio.run(body())
    read = {fault: (type(outcome), getattr(outcome, "kind", None)) for fault, outcome in outcomes.items()}
    expected = {
        fault: (kind, read[fault][1] if error is None else error) for fault, (kind, error) in SUBMIT_FAULTS.items()
    }
    assert read == expected
