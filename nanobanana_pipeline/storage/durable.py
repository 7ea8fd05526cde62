"""Local files that survive a power cut: what is written here is on the disk when the call returns.

Only plain `os` calls, as these run once an image. What is written, and where, belongs to the callers.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

TEMP_PREFIX = ".nanobanana-"
TEMP_SUFFIX = ".part"

_TOKEN = token_hex(8)
_count = count()


def is_remote(root: str) -> bool:
    """Whether `root` is an object store's URI rather than a folder of this machine."""
    return "://" in root and not root.startswith("file://")


def local_path(root: str | Path) -> str:
    """The absolute path of a local `root` (a path or a `file://` URI)."""
    return str(Path(str(root).removeprefix("file://")).absolute())


def sync(path: str) -> None:
    """Flush a file's data, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: str) -> None:
    """Create `path` and its missing parents, each entry flushed: a file is no safer than the folder that names it."""
    new: list[str] = []
    folder = path
    while not os.path.isdir(folder):  # noqa: PTH112 - pathlib is several times slower, and this is once an image
        new.append(folder)
        folder = os.path.dirname(folder)  # noqa: PTH120
    # A folder that is there already may be so new that whoever made it hasn't flushed it, or died before.
    for folder in reversed(new or [path]):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
        sync(os.path.dirname(folder))  # noqa: PTH120


def write_files(files: Sequence[tuple[str, bytes]]) -> None:
    """Write each file in one step: readers see the old one or the whole new one, even after a power cut.

    The folders must exist (`FileNotFoundError` if not). A crash leaves at most temporary files, see `leftovers`.
    """
    aside: deque[_Aside] = deque()
    try:
        for path, data in files:
            aside.append(_write_aside(path, data))
        for file in aside:
            os.fsync(file.descriptor)
        while aside:
            file = aside[0]
            # Durable once the folder is flushed.
            os.rename(file.temporary, file.path)  # noqa: PTH104
            os.close(aside.popleft().descriptor)
    except BaseException:
        for file in aside:
            _drop(file.descriptor, file.temporary)
        raise
    # Once for all files of a folder: flushing it costs as much as flushing one of them.
    for folder in {os.path.split(path)[0] for path, _ in files}:
        sync(folder)


class _Aside(NamedTuple):
    """A file that is written, under a name of its own, and still open."""

    descriptor: int
    temporary: str
    path: str


def _write_aside(path: str, data: bytes) -> _Aside:
    folder, _ = os.path.split(path)
    # A process that was forked from this one has the same token and count, and one on another host the same number.
    temporary = f"{folder}/{TEMP_PREFIX}{_TOKEN}-{os.getpid()}-{next(_count)}{TEMP_SUFFIX}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        _begin_flush(descriptor)
    except BaseException:
        _drop(descriptor, temporary)
        raise
    return _Aside(descriptor, temporary, path)


def _drop(descriptor: int, temporary: str) -> None:
    """Close and remove a file that is given up, as far as it goes: why it is, is what the caller is to be told."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
    with contextlib.suppress(OSError):
        os.unlink(temporary)  # noqa: PTH108


def _begin_flush(descriptor: int) -> None:
    """Have the system begin to write, without waiting: files that are then flushed together share the disk's turns.

    Linux does so when it is told that what was written is not needed; sixteen pictures took 0.7 of the
    time.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # only advice
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def leftovers(folder: str, older_than_s: float) -> Iterator[str]:
    """The temporary files below `folder` that no live writer can still own: last touched `older_than_s` ago."""
    latest = time.time() - older_than_s
    folders = [folder]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.startswith(TEMP_PREFIX) and entry.name.endswith(TEMP_SUFFIX):
                try:
                    stale = entry.stat(follow_symlinks=False).st_mtime <= latest
                except FileNotFoundError:
                    continue  # its writer has just renamed it
                if stale:
                    yield entry.path
