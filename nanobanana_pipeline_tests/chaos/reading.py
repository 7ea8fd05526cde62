"""A stranger who reads the tables beside the runs, with no code of ours: at no moment may one be unreadable."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from deltalake import DeltaTable

from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline_tests.chaos.verdict import Verdict

READ_TABLES: Final = ("results", "attempts", "images")
_READ_EVERY_S: Final = 2.0


class Reader:
    """Reads the tables, and keeps what could not be read."""

    def __init__(self, settings: Settings) -> None:
        self._root = f"{settings.output}/tables"
        self._options = {"AWS_ALLOW_HTTP": "true"} if "://" in self._root else None
        self.messages: list[str] = []
        self.reads = 0

    def read_all(self) -> None:
        """Open each table that there is, and count its rows."""
        for name in READ_TABLES:
            uri = f"{self._root}/{name}"
            try:
                if DeltaTable.is_deltatable(uri, self._options):
                    table = DeltaTable(uri, storage_options=self._options)
                    self.reads += 1 if table.to_pyarrow_dataset().count_rows() >= 0 else 0
            except Exception as error:  # noqa: BLE001 - whatever a stranger's reader meets
                self.messages.append(f"a reader beside the run could not read {name}: {error!r}"[:500])

    def tell(self, verdict: Verdict) -> None:
        """Add what was met to a verdict."""
        verdict.figures["reads beside the run"] = self.reads
        for message in self.messages:
            verdict.fail(message)


@contextmanager
def reading_beside(settings: Settings) -> Generator[Reader]:
    """Read in a thread for as long as this lasts."""
    reader = Reader(settings)
    done = threading.Event()

    def loop() -> None:
        while not done.wait(_READ_EVERY_S):
            reader.read_all()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield reader
    finally:
        done.set()
        thread.join()
