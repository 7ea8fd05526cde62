"""Object stores by other makers than `object_store`'s, each in processes of its own: what all of them grant is tested.

None of them serves faults. What holds on one alone is tested with that one.
"""

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from nanobanana_pipeline_tests.servers.services import free_port

S3_KEY: Final = "test:tester"
S3_SECRET: Final = "testing"
_READY_S: Final = 200.0


class OtherStore(Protocol):
    """A running store."""

    scheme: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every client finds it."""
        ...

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket, or a place as good as one; its name."""
        ...


class LocalBucket:
    """An S3 server over a folder (the package `localbucket`). It looks at no signature, and knows no DeleteObjects."""

    scheme = "s3"

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every client finds it."""
        return _s3(self._port) | {"AWS_DISABLE_BULK_DELETE": "true"}

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=60).close()  # noqa: S310
        return name

    @classmethod
    @contextmanager
    def running(cls) -> Generator["LocalBucket"]:
        """Start one, and stop it at the end."""
        port = free_port()
        with (
            tempfile.TemporaryDirectory() as folder,
            _process([sys.executable, "-m", "localbucket", folder, "--port", f"{port}"]),
        ):
            _await_port(port)
            yield cls(port)


class Swift:
    """OpenStack's object store behind its S3 interface: signatures are checked, and writers may race (`swift`)."""

    scheme = "s3"

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every client finds it."""
        return _s3(self._port)

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket."""
        import boto3  # noqa: PLC0415 - moto brings it; only this needs it

        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._port}",
            aws_access_key_id=S3_KEY,
            aws_secret_access_key=S3_SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        client.close()
        return name

    @classmethod
    @contextmanager
    def running(cls) -> Generator["Swift"]:
        """Start its four servers over one folder, and stop them at the end."""
        programs = Path(sys.executable).parent
        ports = {name: free_port() for name in ("account", "container", "object", "proxy")}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
            etc = Path(folder, "etc")
            etc.mkdir()
            Path(folder, "node", "disk").mkdir(parents=True)
            (etc / "swift.conf").write_text(_SWIFT)
            for name, port in ports.items():
                if name != "proxy":
                    ring = [programs / "swift-ring-builder", etc / f"{name}.builder"]
                    for words in (
                        ["create", "2", "1", "1"],
                        ["add", f"r1z1-127.0.0.1:{port}/disk", "1"],
                        ["rebalance"],
                    ):
                        subprocess.run([sys.executable, *ring, *words], check=True, stdout=subprocess.DEVNULL)
                where = {"folder": folder, "etc": etc, "port": port, "name": name}
                settings = (_SWIFT_PROXY if name == "proxy" else _SWIFT_STORAGE).format(**where)
                (etc / f"{name}.conf").write_text(_SWIFT_SERVER.format(**where) + settings)
                servers.enter_context(
                    _process([sys.executable, f"{programs}/swift-{name}-server", f"{etc}/{name}.conf"])
                )
            for port in ports.values():
                _await_port(port)
            yield cls(ports["proxy"])


class Azurite:
    """Microsoft's emulator of Azure's blob store (the npm package `azurite`, if it is installed)."""

    scheme = "az"
    command = shutil.which("azurite-blob")
    # The account and the key that every such emulator has, as its documentation says.
    _account = "devstoreaccount1"
    _key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every client finds it."""
        return {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self._port}",
        }

    def make_bucket(self, name: str) -> str:
        """Make an empty container."""
        headers = {"x-ms-date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S GMT}", "x-ms-version": "2021-12-02"}
        resource = f"/{self._account}/{self._account}/{name}\nrestype:container"
        words = "\n".join(["PUT" + "\n" * 11, *(f"{key}:{value}" for key, value in headers.items()), resource])
        signature = hmac.digest(base64.b64decode(self._key), words.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {self._account}:{base64.b64encode(signature).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request(
            "PUT", f"/{self._account}/{name}?restype=container", headers=headers | {"Content-Length": "0"}
        )
        assert connection.getresponse().status == http.HTTPStatus.CREATED
        connection.close()
        return name

    @classmethod
    @contextmanager
    def running(cls) -> Generator["Azurite"]:
        """Start one that keeps all in memory, and stop it at the end."""
        port = free_port()
        words = ["--inMemoryPersistence", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", f"{port}"]
        with _process([str(cls.command), *words]):
            _await_port(port)
            yield cls(port)


class OwnS3:
    """An S3 server that somebody has started, with a bucket to work in: NANOBANANA_TEST_S3 is `http://HOST:PORT/BUCKET`.

    Its keys are those of the environment. What is made there stays there.
    """

    scheme = "s3"
    url = os.environ.get("NANOBANANA_TEST_S3", "")

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every client finds it."""
        parts = urlsplit(self.url)
        return {"AWS_ENDPOINT_URL": f"{parts.scheme}://{parts.netloc}", "AWS_REGION": "us-east-1"}

    def make_bucket(self, name: str) -> str:
        """A place in the one bucket."""
        return f"{urlsplit(self.url).path.strip('/')}/{name}"

    @classmethod
    @contextmanager
    def running(cls) -> Generator["OwnS3"]:
        """It is running."""
        yield cls()


def _s3(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": S3_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def _process(words: list[str]) -> Generator[None]:
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def _await_port(port: int) -> None:
    """Wait until somebody listens; a server that says nothing when it is ready leaves no other way."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on port {port}"
            time.sleep(0.05)
        else:
            return


_SWIFT: Final = """
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = only
default = yes
"""
_SWIFT_SERVER: Final = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = root
swift_dir = {etc}
devices = {folder}/node
mount_check = false
"""
_SWIFT_STORAGE: Final = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_SWIFT_PROXY: Final = """
[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
allow_no_owner = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
