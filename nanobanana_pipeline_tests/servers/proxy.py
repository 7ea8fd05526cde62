"""A wire that can be cut: a TCP proxy in this process, in front of a server that others use too and nobody may stop."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from nanobanana_pipeline_tests.servers.services import free_port


class Proxy:
    """Leads to `port` of `host`; a context manager. `cut` ends every connection and takes no new one."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._last_words: bytes | None = None
        self._listener: socket.socket | None = None
        # One that no system gives away while it is cut.
        self.port = free_port()

    def __enter__(self) -> Self:
        self.restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def cut(self) -> None:
        """End every connection; new ones are refused."""
        with self._lock:
            ends, listener = [*self._open], self._listener
            self._open.clear()
            for end in [*ends, *([listener] if listener else [])]:
                # Its thread wakes from waiting, and closes it.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            if listener:
                listener.close()
            # Last: whoever sees it cut may want the same port again at once.
            self._listener = None

    @property
    def is_cut(self) -> bool:
        """Whether nobody can pass."""
        return self._listener is None

    def restore(self) -> None:
        """Take connections again, on the same port."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut_behind(self, words: bytes) -> None:
        """Cut as soon as a client has said `words`: the server hears them, and nobody hears its answer."""
        self._last_words = words

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
                with self._lock:
                    if self._listener is not listener:  # cut while this one was on its way
                        client.close()
                        server.close()
                        return
                    self._open |= {client, server}
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:  # noqa: FBT001 - one of two ways
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                last = asks and self._last_words is not None and self._last_words in data
                if last:
                    self._last_words = None
                    with self._lock:
                        self._open -= {sink}  # the server must hear them before the line is dead
                sink.sendall(data)
                if last:
                    self.cut()
                    sink.shutdown(socket.SHUT_WR)
                    return
            sink.shutdown(socket.SHUT_RDWR)
