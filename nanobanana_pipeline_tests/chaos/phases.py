"""What a life is doing at this moment, on a board that outlives it: to aim a kill, and to know what it struck.

The board is a small file of counters, one a phase, mapped into memory: a killed process leaves it as it was. Several
phases go on at once (a poll is in the air while an image is written), so a kill may strike several. The product knows
nothing of it: `announce` puts a counter around its doors.
"""

import functools
import mmap
import struct
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

START: Final = "start"
SUBMIT: Final = "submit in the air"
POLL: Final = "poll in the air"
DOWNLOAD: Final = "download"
STORE: Final = "image being written"
LEDGER: Final = "ledger transaction"
TABLES: Final = "table commit"
MEND: Final = "mending"
CATALOGUE: Final = "reading the catalogue"
REPAIR: Final = "the command repair"

PHASES: Final = (START, SUBMIT, POLL, DOWNLOAD, STORE, LEDGER, TABLES, MEND, CATALOGUE, REPAIR)
_COUNTER: Final = struct.Struct("=q")


class Board:
    """The counters of one life at a time; the killer and the killed each open their own on the same file."""

    def __init__(self, path: Path) -> None:
        size = _COUNTER.size * len(PHASES)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Begin with another life."""
        self._memory[:] = bytes(len(self._memory))
        self._add(START, 1)

    def struck(self) -> set[str]:
        """The phases that are going on; after a kill, those that it struck."""
        return {phase for phase in PHASES if self.at(phase)}

    def at(self, phase: str) -> int:
        """How many of a phase are going on."""
        return _COUNTER.unpack_from(self._memory, _place(phase))[0]

    @contextmanager
    def during(self, phase: str) -> Generator[None]:
        """Count a phase in for as long as it lasts; the first one ends the start."""
        self._add(phase, 1)
        if self.at(START):
            self._add(START, -1)
        try:
            yield
        finally:
            self._add(phase, -1)

    def _add(self, phase: str, number: int) -> None:
        with self._lock:
            _COUNTER.pack_into(self._memory, _place(phase), self.at(phase) + number)


def announce(board: Board) -> None:
    """Have this process say what it is doing. Call it before what is announced is imported by name elsewhere."""
    from nanobanana_pipeline.generation import client, intake, mending  # noqa: PLC0415 - only in lives
    from nanobanana_pipeline.ledger.database import Database  # noqa: PLC0415
    from nanobanana_pipeline.storage.images import ImageStore  # noqa: PLC0415
    from nanobanana_pipeline.storage.tables import Tables  # noqa: PLC0415

    for owner, name, phase in (
        (client.HttpProvider, "submit", SUBMIT),
        (client.HttpProvider, "poll", POLL),
        (client.HttpProvider, "download", DOWNLOAD),
    ):
        setattr(owner, name, _awaited(board, phase, getattr(owner, name)))
    for owner, name, phase in (
        (ImageStore, "write_all", STORE),
        (Tables, "replace", TABLES),
        (mending, "mend_tables", MEND),
        (intake, "refresh", CATALOGUE),
    ):
        setattr(owner, name, _called(board, phase, getattr(owner, name)))
    write = Database.write

    @contextmanager
    def announced(self: Database) -> Generator[Any]:
        with board.during(LEDGER), write(self) as connection:
            yield connection

    Database.write = announced


def _place(phase: str) -> int:
    return PHASES.index(phase) * _COUNTER.size


def _awaited(board: Board, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    async def announced(*arguments: Any, **named: Any) -> Any:
        with board.during(phase):
            return await work(*arguments, **named)

    return announced


def _called(board: Board, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def announced(*arguments: Any, **named: Any) -> Any:
        with board.during(phase):
            return work(*arguments, **named)

    return announced
