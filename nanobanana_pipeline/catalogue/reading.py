"""Finds catalogues under a root and reads their Parquet files batch by batch, on a disk or in an object store.

What a row must look like is `validation`'s; nothing here knows a column's name. A file is never mapped into memory: one
that is cut short while it is read would end the whole process.
"""
# pyarrow has no types of its own.
# pyright: reportUnknownParameterType=false

import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.object_stores.opening import open_uri

_SUFFIX = ".parquet"
_HIDDEN = ("_", ".")
_READ_BUFFER_BYTES = 1 << 20
_ENDS = (b"PAR1", b"PARE")
_LEAST_BYTES = 12
_SLOWEST_WRITER_S = 600.0
"""A file without its end that nobody has written to for so long stays like that, and a person should hear of it."""
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = range(64, 16_384)
# What the file systems call the mark that changes with a file's content, most telling first.
_CHANGE_MARKS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


class UnreadableFileError(Exception):
    """A file could not be read to its end; the message says why, in one short line."""


@dataclass(frozen=True, slots=True)
class CatalogueFile:
    """A Parquet file of a catalogue: its address, its path below the root for messages, its size and mark of change."""

    uri: str
    path: str
    size: int
    changed: str


@dataclass(frozen=True, slots=True)
class CatalogueSource:
    """A catalogue as it was listed: its name and its files in order."""

    name: str
    files: tuple[CatalogueFile, ...]

    @property
    def fingerprint(self) -> str:
        """32 hex digits that stay the same as long as no file was added, removed or written."""
        facts = [(file.path, file.size, file.changed) for file in self.files]
        return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:32]


def find_catalogues(root: str) -> list[CatalogueSource]:
    """The catalogues that are direct children of `root` (a folder or fsspec URI), by name.

    A Parquet file is a catalogue, and so is a folder with Parquet files anywhere in it; names that begin with `_` or
    `.` are passed over. Raises `UserError` when the root can't be listed, or when two children would have one name.
    """
    fs, folder = _open_root(root)
    try:
        found = [source for child in _children(fs, folder) if (source := _source(fs, folder, child))]
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no folder {root}: set NANOBANANA_CATALOGUE to where your catalogues are") from None
    except Exception as error:  # noqa: BLE001 (each store has exceptions of its own)
        raise UserError(f"can't list {root}: {one_line(error)}; check NANOBANANA_CATALOGUE and your access") from None
    found.sort(key=lambda source: source.name)
    for one, other in pairwise(found):
        if one.name == other.name:
            raise UserError(
                f"two catalogues are called {one.name!r} ({one.files[0].path} and {other.files[0].path}): rename one"
            )
    return found


def is_being_written(source: CatalogueSource, now: float) -> bool:
    """Whether some file has no Parquet end yet and was written to of late; `now` in seconds since the epoch.

    A writer that waits for its rows leaves a file at rest for minutes, half of it. In an object store there are no
    halves.
    """
    recent = (file for file in source.files if _is_local(file) and abs(now - _written_at(file)) < _SLOWEST_WRITER_S)
    return not all(map(_has_its_end, recent))


def iter_batches(file: CatalogueFile) -> Iterator[pa.RecordBatch]:
    """The rows of a file in order, a few megabytes at a time; at least one batch, so that the columns are known.

    Raises `UnreadableFileError` for a file that is missing, torn, encrypted or no Parquet, also midway.
    """
    with _reading():
        handle = _open(file)
    with closing(handle):
        with _reading():
            # With a buffer and no pre-buffering, a row group of any size takes a few megabytes instead of all it has.
            parquet = pq.ParquetFile(
                handle, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            batches = parquet.iter_batches(batch_size=_rows_a_batch(parquet.metadata))
            batch = next(batches, None) or _no_rows(parquet.schema_arrow)
        while batch is not None:
            yield batch
            with _reading():
                batch = next(batches, None)


@contextmanager
def _reading() -> Generator[None]:
    """Turn whatever a codec or a store raises over a stranger's file into `UnreadableFileError`."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (a torn file raises nearly anything, and each store has its own)
        raise UnreadableFileError(one_line(error)) from None


def one_line(error: Exception) -> str:
    """What an exception says, shortened to fit into a message of ours."""
    if isinstance(error, FileNotFoundError):
        return "it is not there any more"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200].rstrip(".") or type(error).__name__


def _open(file: CatalogueFile) -> Any:
    if "://" not in file.uri:
        return pa.OSFile(file.uri)
    fs, path = open_uri(file.uri)
    return fs.open(path, "rb", cache_type="none")


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def _rows_a_batch(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    bytes_a_row = max(1, size // max(1, metadata.num_rows))
    return min(max(_BATCH_BYTES // bytes_a_row, _BATCH_ROWS.start), _BATCH_ROWS.stop)


def _open_root(root: str) -> tuple[AbstractFileSystem, str]:
    try:
        fs, folder = open_uri(root)
    except (ImportError, ValueError) as error:
        raise UserError(f"can't use {root} as catalogue: {one_line(error)}; correct NANOBANANA_CATALOGUE") from None
    # An object store's listing is cached in the process: a daemon would never see a new file.
    fs.invalidate_cache()
    return fs, folder.rstrip("/") or "/"


def _children(fs: AbstractFileSystem, folder: str) -> Iterator[dict[str, Any]]:
    if fs.isfile(folder):
        raise UserError(f"{folder} is a file: set NANOBANANA_CATALOGUE to the folder that it is in")
    for child in fs.ls(folder, detail=True):
        # Some stores list a folder among its own children.
        if child["name"].rstrip("/") != folder and not _basename(child["name"]).startswith(_HIDDEN):
            yield child


def _source(fs: AbstractFileSystem, root: str, child: dict[str, Any]) -> CatalogueSource | None:
    path, name = child["name"].rstrip("/"), _basename(child["name"])
    # What is neither file nor folder is a link, or came of one.
    if child["type"] == "directory" or (child["type"] != "file" and fs.isdir(path)):
        below = fs.find(path, detail=True)
        files = tuple(_describe(fs, root, below[file]) for file in sorted(below) if _belongs(file[len(path) :]))
        return CatalogueSource(name, files) if files else None
    if not name.lower().endswith(_SUFFIX):
        return None
    return CatalogueSource(name[: -len(_SUFFIX)], (_describe(fs, root, child),))


def _belongs(path: str) -> bool:
    """Whether a path below a catalogue's folder is one of its files."""
    parts = PurePosixPath(path).parts
    return path.lower().endswith(_SUFFIX) and not any(part.startswith(_HIDDEN) for part in parts)


def _describe(fs: AbstractFileSystem, root: str, info: dict[str, Any]) -> CatalogueFile:
    path = info["name"]
    shown = _checked(path[len(root) :].lstrip("/"))
    if isinstance(fs, LocalFileSystem):
        return CatalogueFile(path, shown, *_size_and_change(path))
    changed = next((str(info[mark]) for mark in _CHANGE_MARKS if info.get(mark)), "")
    return CatalogueFile(fs.unstrip_protocol(path), shown, int(info.get("size") or 0), changed)


def _size_and_change(path: str) -> tuple[int, str]:
    try:
        found = Path(path).stat()
    except OSError:
        # Gone since it was listed, or a link to nowhere: reading it will say so, in a rejection of its own.
        return 0, ""
    return found.st_size, str(found.st_mtime_ns)


def _is_local(file: CatalogueFile) -> bool:
    return file.uri.startswith("/") and bool(file.changed)


def _written_at(file: CatalogueFile) -> float:
    return int(file.changed) / 1e9


def _has_its_end(file: CatalogueFile) -> bool:
    try:
        with Path(file.uri).open("rb") as opened:
            if opened.seek(0, os.SEEK_END) < _LEAST_BYTES:
                return False
            opened.seek(-4, os.SEEK_END)
            return opened.read(4) in _ENDS
    except OSError:
        # Reading it will say what is wrong.
        return True


def _basename(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _checked(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {path!a} is not valid UTF-8, so no table can hold it: rename the file") from None
    return path
