"""A broker that others use too: a queue of one's own there, and a wire to it that can be cut."""

import os
import signal
import socket
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit
from uuid import uuid4

from kombu.connection import Connection
from kombu.entity import Exchange, Queue

from nanobanana_pipeline_tests.servers.proxy import Proxy

_PORTS: Final = {"amqp": 5672, "redis": 6379}


def rabbitmq_url() -> str:
    """The RabbitMQ that tests use: NANOBANANA_TEST_RABBITMQ, else the local one, as Debian's package leaves it."""
    return os.environ.get("NANOBANANA_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")


def answers(url: str) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(_place(url), timeout=60).close()
    except OSError:
        return False
    return True


class SharedBroker:
    """A context manager, which takes its queue away at the end. To be `stop`ped it has its wire cut."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._server = url
        host, port = _place(url)
        self._wire = Proxy(port, host)
        self.queue = f"nanobanana_{uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        self._wire.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.cut()
        exchange = Exchange(self.queue)
        with Connection(self._server) as connection:
            channel = connection.default_channel
            Queue(self.queue, exchange, self.queue)(channel).delete()
            exchange(channel).delete()

    @property
    def url(self) -> str:
        """As clients name it, by way of the wire."""
        user, at, _ = self._parts.netloc.rpartition("@")
        return self._parts._replace(netloc=f"{user}{at}127.0.0.1:{self._wire.port}").geturl()

    def stop(self, number: int = signal.SIGTERM) -> None:  # noqa: ARG002 - as a service of one's own is stopped
        """Cut the wire."""
        self._wire.cut()

    def start(self) -> None:
        """Mend the wire."""
        self._wire.restore()


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or _PORTS[parts.scheme]
