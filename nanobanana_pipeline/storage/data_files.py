"""The Parquet files of one Delta table: writing them so that a commit may rely on them, and reading them back.

Delta's own writer flushes nothing to the disk, so a power cut could keep a commit and lose its data. Files written here
are durable before the commit that names them. Which files to write and when to commit is decided in `tables`.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import contextlib
import hashlib
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.storage import durable

STATISTICS_COLUMNS: Final = ("catalogue", "shard", "day")
"""What rows are looked up by. Statistics on every column made commits five times dearer at 10,000 shards."""

_ROWS_PER_FILE: Final = 1_000_000
_ROWS_PER_GROUP: Final = 50_000


def fingerprint(columns: Iterable[str]) -> str:
    """Eight hex digits of a file's columns. They are in its name, so that readers see which files lack newer ones."""
    return hashlib.sha256("\0".join(columns).encode()).hexdigest()[:8]


class DataFiles:
    """The data files of the table at `uri`, a folder or a place in an object store. Names are relative to it."""

    def __init__(self, uri: str) -> None:
        self._folder = None if durable.is_remote(uri) else uri
        if self._folder:
            self._filesystem = pafs.SubTreeFileSystem(uri, pafs.LocalFileSystem())
        else:
            # Not through Delta's own handler: it holds Python's lock while the store takes its time, and with it every
            # other shard of the process.
            self._store, self._base = open_uri(uri)
            self._filesystem = pafs.SubTreeFileSystem(self._base, pafs.PyFileSystem(pafs.FSSpecHandler(self._store)))

    def write(
        self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, data_change: bool = True
    ) -> list[AddAction]:
        """Write `batches` to new files of at most a million rows each; durable when this returns. No rows, no file."""
        if self._folder:
            return self._write(batches, schema, self._filesystem, data_change=data_change)
        # A file that fails halfway must not show in the store, so each is sent when it is whole.
        with tempfile.TemporaryDirectory(prefix="nanobanana-table-") as folder:
            drafts = pafs.SubTreeFileSystem(folder, pafs.LocalFileSystem())
            return self._write(batches, schema, drafts, data_change=data_change)

    def _write(
        self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, drafts: pafs.SubTreeFileSystem, *, data_change: bool
    ) -> list[AddAction]:
        written: list[AddAction] = []
        open_file: _OpenFile | None = None
        try:
            for rows in _row_groups(batches):
                if open_file is None:
                    open_file = _OpenFile(drafts, schema)
                open_file.write(rows)
                if open_file.rows >= _ROWS_PER_FILE:
                    written.append(self._finish(open_file, drafts, data_change=data_change))
                    open_file = None
            if open_file is not None:
                written.append(self._finish(open_file, drafts, data_change=data_change))
        except BaseException:
            if open_file is not None:
                open_file.abandon()
                self.remove([open_file.name])
            self.remove([add.path for add in written])
            raise
        if written and self._folder:
            durable.sync(self._folder)
        return written

    def _finish(self, open_file: "_OpenFile", drafts: pafs.SubTreeFileSystem, *, data_change: bool) -> AddAction:
        open_file.close()
        size = drafts.get_file_info(open_file.name).size
        if self._folder:
            durable.sync(f"{self._folder}/{open_file.name}")
        else:
            self._store.put_file(f"{drafts.base_path}{open_file.name}", f"{self._base}/{open_file.name}")
            drafts.delete_file(open_file.name)
        return AddAction(
            open_file.name,
            size,
            {},
            time.time_ns() // 1_000_000,
            data_change,
            orjson.dumps(open_file.statistics()).decode(),
        )

    def remove(self, names: Iterable[str]) -> None:
        """Delete files that no commit names. One that is not there, or can't go, is left to `maintain`."""
        for name in names:
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(name)

    def dataset(self, names: Iterable[str], schema: pa.Schema) -> pads.Dataset:
        """The rows of the files `names` with the columns of `schema`; a file that lacks one has nulls there."""
        return pads.dataset(
            list(names), schema=schema, filesystem=self._filesystem, format="parquet", exclude_invalid_files=False
        )


class _OpenFile:
    """One Parquet file being written, with what Delta keeps about it."""

    def __init__(self, filesystem: pafs.FileSystem, schema: pa.Schema) -> None:
        self.name = f"part-{fingerprint(schema.names)}-{uuid.uuid4().hex}.parquet"
        self.rows = 0
        self._lowest: dict[str, Any] = {}
        self._highest: dict[str, Any] = {}
        self._nulls: dict[str, int] = dict.fromkeys((name for name in schema.names if name in STATISTICS_COLUMNS), 0)
        self._sink = filesystem.open_output_stream(self.name)
        self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd", store_decimal_as_integer=True)

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows)
        self.rows += rows.num_rows
        for name in self._nulls:
            column = rows.column(name)
            self._nulls[name] += column.null_count
            if column.null_count < len(column):
                extremes = pc.min_max(column).as_py()  # pyright: ignore[reportAttributeAccessIssue]
                self._lowest[name] = min(self._lowest.get(name, extremes["min"]), extremes["min"])
                self._highest[name] = max(self._highest.get(name, extremes["max"]), extremes["max"])

    def close(self) -> None:
        self._writer.close()
        self._sink.close()

    def abandon(self) -> None:
        # It is deleted next: what can't be flushed any more (a full disk) doesn't matter.
        for closable in (self._writer, self._sink):
            with contextlib.suppress(OSError, pa.ArrowException):
                closable.close()

    def statistics(self) -> dict[str, Any]:
        """Delta's statistics of the file: by these a reader of one shard skips the others' files."""
        return {
            "numRecords": self.rows,
            "minValues": self._lowest,
            "maxValues": self._highest,
            "nullCount": self._nulls,
        }


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """`batches` in portions worth a row group: each costs a look into its statistics, and memory."""
    portion: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if batch.num_rows:
            portion.append(batch)
            rows += batch.num_rows
        if rows >= _ROWS_PER_GROUP:
            yield pa.Table.from_batches(portion)
            portion, rows = [], 0
    if portion:
        yield pa.Table.from_batches(portion)
