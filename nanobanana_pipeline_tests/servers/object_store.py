"""An S3 server in a process of its own (moto's), with what goes wrong between a client and a store.

`python -m nanobanana_pipeline_tests.servers.object_store PORT` runs it in the foreground. It keeps all in memory,
and ends with whoever holds its standard input.
"""

import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self

Happening = Literal["busy", "denied", "lost", "cut", "torn", "slow", "heedless"]

KEY: Final = "test"
SECRET: Final = "secret-of-the-tests"
_FAULTS: Final = "/-/faults"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to the next `times` requests of `method` whose path matches `path`.

    `busy`: 503, `denied`: 403, and nothing was done. `lost`: it was done, and the answer is a 500. `cut`: the
    connection ends without an answer, and nothing was done. `torn`: the answer ends in its middle. `slow`: a second
    passes first. `heedless`: a put's condition is overlooked, as older servers do.
    """

    what: Happening
    method: str = ""
    path: str = ""
    times: int = 1


class ObjectStoreProcess:
    """A running server; a context manager. `faults` are served in their order."""

    def __init__(self, port: int = 0) -> None:
        self._asked = port
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__, str(self._asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C in a terminal is for the parent, whose other children still need the store to end in good order.
            process_group=0,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables by which every client finds the server, or a proxy at `endpoint` that leads to it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self._ask("PUT", f"/{name}")

    def let_fail(self, *faults: Fault) -> None:
        """From now on these faults, and none of those set before."""
        self._ask("POST", _FAULTS, json.dumps([asdict(fault) for fault in faults]).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> None:
        # moto looks at no signature.
        request = urllib.request.Request(  # noqa: S310 - a server of ours
            self.url + path,
            body,
            {"Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/x"},
            method=method,
        )
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310


class _Faulty:
    """A WSGI application around moto's."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._faults: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._conditional = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _FAULTS:
            with self._lock:
                self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            start_response("204 No Content", [])
            return []
        what = self._due(environ)
        if what == "busy":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        if what == "denied":
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        if what == "cut":
            _hang_up(environ)
        if what == "slow":
            time.sleep(1)
        if what == "heedless":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if what == "lost":
            b"".join(self._served(environ, lambda *_: None))
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"]
        answer = self._served(environ, start_response)
        return _torn(environ, b"".join(answer)) if what == "torn" else answer

    def _served(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return self._store(environ, start_response)
        # moto looks and then writes; a real store does both in one step.
        with self._conditional:
            return self._store(environ, start_response)

    def _due(self, environ: dict[str, Any]) -> str | None:
        with self._lock:
            for fault in self._faults:
                right = fault["method"] in {"", environ["REQUEST_METHOD"]}
                if right and fault["times"] > 0 and re.search(fault["path"], environ["PATH_INFO"]):
                    fault["times"] -= 1
                    return fault["what"]
        return None


def _torn(environ: dict[str, Any], answer: bytes) -> Iterator[bytes]:
    yield answer[: len(answer) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> NoReturn:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import create_backend_app  # noqa: PLC0415 - takes seconds, and only this process needs it
    from werkzeug.serving import make_server  # noqa: PLC0415

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", port, _Faulty(create_backend_app("s3")), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)  # noqa: T201 - how its parent learns the port
    sys.stdin.read()


if __name__ == "__main__":
    _serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
