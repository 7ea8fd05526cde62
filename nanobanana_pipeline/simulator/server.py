"""The simulator as a process: two listening sockets, one event loop, an end on SIGTERM, SIGINT or the parent's death.

Prints one line of JSON on standard output when it is ready: base_url, images_url, book, pid.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.simulator.app import TRANSPORT, build_apps
from nanobanana_pipeline.simulator.billing import Book
from nanobanana_pipeline.simulator.faults import FaultScript, load_faults
from nanobanana_pipeline.simulator.images import ImageOrigin
from nanobanana_pipeline.simulator.options import KEY_FROM_STDIN, SimulatorOptions, read_arguments
from nanobanana_pipeline.simulator.pictures import Studio
from nanobanana_pipeline.simulator.provider import Provider


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulator until it is told to end; the exit code."""
    options = read_arguments(arguments)
    if options.api_key == KEY_FROM_STDIN:
        options = dataclasses.replace(options, api_key=_first_line_of_stdin())
    try:
        run(options)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def run(options: SimulatorOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises `UserError` when a port, the book or the fault script can't be used."""
    faults = FaultScript() if options.faults is None else load_faults(options.faults)
    api, images = _listen(options.host, options.port), _listen(options.host, options.images_port)
    with contextlib.ExitStack() as stack:
        if options.book is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nanobanana-simulator-"))
            options = dataclasses.replace(options, book=Path(folder) / "book.jsonl")
        stack.enter_context(contextlib.closing(api))
        stack.enter_context(contextlib.closing(images))
        loop_factory = uvicorn.Config(_nothing).get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_serve(options, faults, api, images))


async def _serve(options: SimulatorOptions, faults: FaultScript, api: socket.socket, images: socket.socket) -> None:
    book = Book((options.book or Path("book.jsonl")).absolute(), fsync=options.fsync)
    studio = Studio()
    with contextlib.closing(book), contextlib.closing(studio):
        spec = load_spec(options.model)
        spec.price_at(datetime.now(UTC).date())  # without a price nothing could be billed: say so at once
        provider = Provider(options, spec, book, _origin(options.host, images))
        provider.faults = faults
        servers = [_Server(app) for app in build_apps(provider, ImageOrigin(provider, studio))]
        _end_on_signals(servers)
        if options.watch_stdin:
            _end_with_stdin(servers)
        ready = {
            "base_url": _origin(options.host, api),
            "images_url": provider.images_origin,
            "book": str(book.path),
            "pid": os.getpid(),
        }
        serving = asyncio.gather(servers[0].serve([api]), servers[1].serve([images]))
        # The sockets listen already: whoever reads this line may connect, and is answered as soon as the loop turns.
        sys.stdout.write(orjson.dumps(ready).decode() + "\n")
        sys.stdout.flush()
        await serving


class _Protocol(HttpToolsProtocol):
    """Lets the application hang up, as only a fault may."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # pyright: ignore[reportGeneralTypeIssues]


def _with_tracebacks(app: ASGIApp) -> ASGIApp:
    """Show what escapes an application; uvicorn's own log would also show every connection that a fault cuts."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception:
            traceback.print_exc()
            raise

    return guarded


class _Server(uvicorn.Server):
    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                _with_tracebacks(app),
                http=_Protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="critical",
                proxy_headers=False,
                server_header=False,
                headers=[("X-Nanobanana-Simulator", "1")],
                # As long as a gateway keeps it: a short one would race with clients that send on an idle connection.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone: there are two servers, and they must end together."""
        yield


def _end_on_signals(servers: Sequence[uvicorn.Server]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, servers)


def _end_with_stdin(servers: Sequence[uvicorn.Server]) -> None:
    loop = asyncio.get_running_loop()

    def on_readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            _end(servers)

    loop.add_reader(sys.stdin.fileno(), on_readable)


def _end(servers: Sequence[uvicorn.Server]) -> None:
    for server in servers:
        server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise UserError(
            f"the simulator can't listen on {host}:{port}: {error.strerror}; choose another with --host and --port"
        ) from error
    return listener


def _origin(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def _first_line_of_stdin() -> str:
    # Byte by byte: a buffered read could swallow what the loop must see, the end of the stream.
    line = b""
    while (byte := os.read(sys.stdin.fileno(), 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


async def _nothing(_scope: object, _receive: object, _send: object) -> None:
    """Stand-in application for the configuration that names the event loop."""
