"""The Delta tables of an output: reading them, and replacing one shard's rows in one conditional commit.

The tables are derived from the ledger. A writer pins a table's version, then reads the ledger, then replaces its rows
against that version: rows that someone else has replaced in between mean `Conflict`, and the ledger is read again. So
an older view never overwrites a newer one, whichever writer is slower. What the columns are is in `schemas`; mending
after a power cut is in `repair`.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.object_stores.conditions import refuse_heedless
from nanobanana_pipeline.storage import delta_log, durable
from nanobanana_pipeline.storage.data_files import STATISTICS_COLUMNS, DataFiles, fingerprint
from nanobanana_pipeline.storage.repair import BeforeLoss, Repair, repair_table
from nanobanana_pipeline.storage.schemas import NOT_FROM_LEDGER, SCHEMAS, description_of

TABLES: Final = "tables"
"""The folder of the tables, under the output."""

Predicate = Mapping[str, str]
"""Which rows are meant: those whose columns have exactly these values."""

_MODE: Final = "nanobanana.mode"
_MEND: Final = "run `nanobanana repair`, which rebuilds it from the ledger at no cost"

_COMMIT_TRIES: Final = 100
_BATCH_ROWS: Final = 100_000

# Merging pays from some hundred files on; fifty shards to a file keep it cheap to replace one of them later.
_SMALL_BYTES: Final = 2_000_000
_MANY_FILES: Final = 200
_MERGED_FILES: Final = 50
_MERGED_AFTER_MS: Final = 3_600_000
# A query that began before a file was replaced may read it still.
_DELETED_KEPT_H: Final = 168


class Conflict(Exception):  # noqa: N818 - not an error: the caller reads the ledger again and repeats
    """Someone else has replaced these rows since the version that this change was made for."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of one table, for readers: `uris` are its files, `schema` the columns that a reader may ask for.

    `even` says that every file has every column; where not, a reader must fill the gaps with nulls.
    """

    name: str
    version: int | None
    schema: pa.Schema
    uris: tuple[str, ...]
    even: bool
    dataset: Callable[[], pads.Dataset]


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What `maintain` did: small files merged into larger ones, and files deleted."""

    merged: int
    deleted: int


class Tables:
    """The tables of one output (a local folder or an object store's URI).

    `simulated` is kept in each table's metadata, and writing to a table of the other kind is refused; None, for
    readers, neither says nor checks. One object serves any number of threads.
    """

    def __init__(self, root: str | Path, *, simulated: bool | None = None) -> None:
        self.root = str(root)
        self._mode = None if simulated is None else ("simulated" if simulated else "live")
        self._base = self.root.rstrip("/") if durable.is_remote(self.root) else durable.local_path(self.root)
        self._local = not durable.is_remote(self.root)
        # The table as `version` last saw it: saves `replace` from reading the log again. Taken out while in use.
        self._pinned: dict[str, DeltaTable] = {}

    def uri(self, name: str) -> str:
        """Where the table `name` lives: an absolute path, or a URI."""
        return f"{self._base}/{TABLES}/{name}"

    def check_commits(self) -> None:
        """Refuse an object store on which two commits could undo each other, with a `UserError`.

        Every writer does so by itself; to be called before money is spent on rows that could not be written.
        """
        if not self._local:
            refuse_heedless(f"{self._base}/{TABLES}")

    def version(self, name: str) -> int | None:
        """The table's version now, to be given to `replace`; None while there is no such table."""
        delta = self.open(name)
        if delta is None:
            return None
        self._pinned[name] = delta
        return delta.version()

    def identity(self, name: str) -> tuple[str, int] | None:
        """What tells this state of the table from all others: the table's own id, and its version; None without one."""
        delta = self.open(name)
        return None if delta is None else (str(delta.metadata().id), delta.version())

    def ensure(self, name: str) -> int:
        """Create the table, empty, if it isn't there; its version."""
        delta = self.open(name) or self._create(name)
        return delta.version()

    def replace(
        self,
        name: str,
        data: pa.Table | pa.RecordBatchReader,
        predicate: Predicate | None,
        *,
        expected_version: int | None,
    ) -> int:
        """Put `data` in the place of the rows that `predicate` means (None: of all), in one commit; the new version.

        Raises `Conflict`, with nothing changed, when any of those rows may have changed since `expected_version` (None:
        the table wasn't there). Other writers' rows are never touched, and never in the way. Columns of the schema that
        `data` lacks are null. Durable when this returns.
        """
        self.check_commits()
        delta, before = self._as_seen(name, expected_version, predicate)
        self._refresh(name, delta)
        self._check_mode(name, delta)
        unchanged = partial(_unchanged, delta, predicate, before)
        if not unchanged():
            raise Conflict(f"{name}: {predicate or 'all rows'} changed since version {expected_version}")
        self._add_missing_columns(name, delta)
        change = self._change(name, delta, data, predicate, before)
        if not change.adds and not change.removes:
            return delta.version()
        return self._carry_out(name, delta, change, unchanged)

    def append(self, name: str, data: pa.Table | pa.RecordBatchReader) -> int:
        """Add rows; the new version. Appends never conflict. Durable when this returns."""
        self.check_commits()
        delta = self.open(name) or self._create(name)
        self._check_mode(name, delta)
        self._add_missing_columns(name, delta)
        change = self._change(name, delta, data, None, frozenset())
        return self._carry_out(name, delta, change, lambda: True) if change.adds else delta.version()

    def read(
        self, name: str, columns: Sequence[str] | None = None, predicate: Predicate | pc.Expression | None = None
    ) -> pa.Table:
        """The rows of a table, in no particular order. An absent table is empty; files' missing columns are null.

        `predicate` chooses rows: by a mapping only the files that may hold them are opened, by an expression all are.
        """
        snapshot = self.snapshot(name, predicate if isinstance(predicate, Mapping) else None)
        columns = None if columns is None else list(columns)
        if not snapshot.uris:
            empty = snapshot.schema.empty_table()
            return empty if columns is None else empty.select(columns)
        rows = _matching(predicate) if isinstance(predicate, Mapping) else predicate
        return snapshot.dataset().to_table(columns=columns, filter=rows)

    def snapshot(self, name: str, predicate: Predicate | None = None) -> Snapshot:
        """The files of a table as it is now; with a predicate, those that may hold such rows. Works without a table."""
        delta = self.open(name)
        schema = SCHEMAS[name]
        if delta is None:
            return Snapshot(name, None, schema, (), even=True, dataset=schema.empty_table)
        schema = _with_columns_of(schema, delta)
        names = sorted(_names(delta, predicate))
        mark = f"part-{fingerprint(schema.names)}-"
        return Snapshot(
            name,
            delta.version(),
            schema,
            tuple(f"{self.uri(name)}/{file}" for file in names),
            even=all(file.startswith(mark) for file in names),
            dataset=lambda: DataFiles(self.uri(name)).dataset(names, schema),
        )

    def repair(self, before_loss: BeforeLoss, older_than_s: float = 3600.0) -> list[Repair]:
        """Mend what a crash or a power cut has left; what was found. Quick: meant for the beginning of every run.

        Where `rebuild` is set rows are missing, and the table has to be written again from the ledger; `before_loss`
        was told so before. Only local tables can be torn: an object store shows an object once it is there in full.
        """
        self._pinned.clear()
        found: list[Repair] = []
        for name in SCHEMAS:
            if self._local:
                found += repair_table(Path(self.uri(name)), older_than_s, before_loss)
            if name not in NOT_FROM_LEDGER and self.open(name) is None:
                before_loss(name)
                found.append(Repair(name, "is not there", rebuild=True))
        return found

    def maintain(self, name: str) -> Upkeep:
        """Keep a table of many shards quick: merge its small files, delete those that no reader can still want.

        For a quiet hour: a writer that replaces rows of a file being merged gets a `Conflict`.
        """
        delta = self.open(name)
        if delta is None:
            return Upkeep(0, 0)
        self.check_commits()
        merged = self._merge_small_files(name, delta)
        deleted = delta.vacuum(
            retention_hours=_DELETED_KEPT_H,
            dry_run=False,
            full=True,
            commit_properties=delta_log.ONCE,
            post_commithook_properties=delta_log.NO_HOOKS,
        )
        delta = delta_log.open_table(self.uri(name))
        delta_log.sync(self.uri(name), delta.version())
        delta_log.checkpoint(self.uri(name))
        return Upkeep(merged, len(deleted))

    def _merge_small_files(self, name: str, delta: DeltaTable) -> int:
        """Merge files that nobody has written to for a while, in the order of their shards; how many went."""
        latest = time.time_ns() // 1_000_000 - _MERGED_AFTER_MS
        facts = pa.table(delta.get_add_actions(flatten=True)).to_pylist()
        small = [
            fact["path"]
            for fact in sorted(facts, key=lambda fact: str(fact.get("min.shard")))
            if fact["size_bytes"] < _SMALL_BYTES and fact["modification_time"] <= latest
        ]
        if len(small) < _MANY_FILES:
            return 0
        files = DataFiles(self.uri(name))
        schema = _with_columns_of(SCHEMAS[name].remove_metadata(), delta)
        adds: list[AddAction] = []
        for first in range(0, len(small), _MERGED_FILES):
            group = small[first : first + _MERGED_FILES]
            adds += files.write(files.dataset(group, schema).to_batches(), schema, data_change=False)
        change = delta_log.Change(files, adds, small, data_change=False)
        self._carry_out(name, delta, change, lambda: _names(delta, None).issuperset(small))
        return len(small)

    def open(self, name: str, version: int | None = None) -> DeltaTable | None:
        """The Delta table itself; None when there is none. `UserError` when a power cut or an edit has broken it."""
        try:
            delta = delta_log.open_table(self.uri(name), version)
        except TableNotFoundError:
            return None
        except DeltaError as error:
            raise self._unreadable(name, error) from error
        if self._local and version is None and delta_log.entry(self.uri(name), delta.version()).stat().st_size == 0:
            # Delta takes an empty entry for a commit that changed nothing: what it held is missing without a word.
            raise UserError(f"the table {self.uri(name)} lost its latest commit in a crash: {_MEND}")
        return delta

    def _as_seen(
        self, name: str, version: int | None, predicate: Predicate | None
    ) -> tuple[DeltaTable, frozenset[str]]:
        """The table as it was at `version`, and the files that the rows meant may have been in."""
        delta = self._pinned.pop(name, None)
        if version is None:
            return self.open(name) or self._create(name), frozenset()
        if delta is None or delta.version() != version:
            try:
                delta = self.open(name, version)
            except UserError:
                self.open(name)  # raises again when the table is broken, not just this version gone
                delta = None
        if delta is None:
            # Its log entry was tidied away, or the table was made anew: whatever may have happened since.
            raise Conflict(f"{name}: there is no version {version} any more")
        return delta, _names(delta, predicate)

    def _create(self, name: str) -> DeltaTable:
        self.check_commits()
        schema = SCHEMAS[name]
        uri = self.uri(name)
        description = description_of(schema)
        if self._local:
            durable.make_folder(uri)
        try:
            create = partial(
                DeltaTable.create,
                uri,
                schema=schema,
                storage_options=delta_log.options(uri),
                name=name,
                description=f"{description} Simulated: no real money." if self._mode == "simulated" else description,
                configuration={
                    "delta.checkpointInterval": str(delta_log.CHECKPOINT_EVERY),
                    "delta.dataSkippingStatsColumns": ",".join(c for c in STATISTICS_COLUMNS if c in schema.names),
                    # What an object store keeps of the log: as much as there are files for.
                    "delta.logRetentionDuration": f"interval {_DELETED_KEPT_H} hours",
                    **({_MODE: self._mode} if self._mode else {}),
                },
                raise_if_key_not_exists=False,  # ours is no key of Delta's
                commit_properties=delta_log.ONCE,
                post_commithook_properties=delta_log.NO_HOOKS,
            )
            delta_log.asked(uri, create)
        except DeltaError:
            # Another worker may have been faster.
            if (delta := self.open(name)) is None:
                raise
            return delta
        if self._local:
            durable.sync(uri)
        delta = delta_log.open_table(uri)
        delta_log.sync(self.uri(name), 0)
        return delta

    def _check_mode(self, name: str, delta: DeltaTable) -> None:
        found = delta.metadata().configuration.get(_MODE)
        if self._mode and found and found != self._mode:
            raise UserError(
                f"the table {self.uri(name)} holds {found} rows, and this work is {self._mode}: "
                "set NANOBANANA_OUTPUT to a folder of its own"
            )

    def _add_missing_columns(self, name: str, delta: DeltaTable) -> None:
        """Give a table that an older version wrote the columns that came since."""
        missing = _missing_columns(name, delta)
        if not missing:
            return
        try:
            add = partial(
                delta.alter.add_columns,
                DeltaSchema.from_arrow(pa.schema(missing)).fields,
                commit_properties=delta_log.ONCE,
                post_commithook_properties=delta_log.NO_HOOKS,
            )
            delta_log.asked(self.uri(name), add)
        except DeltaError:
            # Another worker may have added them at the same moment.
            delta_log.asked(self.uri(name), delta.update_incremental)
            if _missing_columns(name, delta):
                raise
        else:
            delta_log.asked(self.uri(name), delta.update_incremental)
            delta_log.sync(self.uri(name), delta.version())

    def _change(
        self,
        name: str,
        delta: DeltaTable,
        data: pa.Table | pa.RecordBatchReader,
        predicate: Predicate | None,
        replaced: frozenset[str],
    ) -> delta_log.Change:
        """Write the files of a replacement: the new rows, and the others' rows of files that can't go as a whole."""
        files = DataFiles(self.uri(name))
        schema = SCHEMAS[name].remove_metadata()
        adds = files.write(_conformed(name, data), schema)
        removes: list[str] = []
        for file in sorted(replaced):
            rows = files.dataset([file], _with_columns_of(schema, delta))
            meant = rows.count_rows(filter=_matching(predicate))
            kept = rows.count_rows() - meant
            if meant:
                removes.append(file)
            if meant and kept:
                adds += files.write(rows.to_batches(filter=~_matching(predicate)), rows.schema)
        return delta_log.Change(files, adds, removes)

    def _carry_out(self, name: str, delta: DeltaTable, change: delta_log.Change, unchanged: Callable[[], bool]) -> int:
        """Commit `change` behind whatever others commit meanwhile, for as long as what it replaces is `unchanged`."""
        for attempt in range(_COMMIT_TRIES):
            if not unchanged():
                change.discard()
                raise Conflict(f"{name}: the rows changed while they were being replaced")
            if delta_log.commit(delta, change):
                return delta_log.settle(self.uri(name), delta.version() + 1)
            self._refresh(name, delta)
            if change.paths and change.paths <= _names(delta, None):
                # An object store may take a commit and lose the answer; repeated, it looks like someone else's.
                return delta_log.settle(self.uri(name), delta.version())
            # Many shards end at once at times; the one that is pushed back must not meet the same crowd again.
            time.sleep(random.uniform(0, min(0.5, 0.01 * attempt)))  # noqa: S311
        # Not discarded: the outcome of the last try may be unknown. `maintain` takes the files away in time.
        raise Conflict(f"{name}: {_COMMIT_TRIES} commits of others came first")

    def _refresh(self, name: str, delta: DeltaTable) -> None:
        """Bring `delta` up to date; `Conflict` when another table stands in its place."""
        try:
            delta_log.asked(self.uri(name), delta.update_incremental)
        except DeltaError as error:
            if self.open(name) is None:
                raise Conflict(f"{name}: the table is gone") from error
            raise Conflict(f"{name}: the table was made anew") from error
        if self._local and not delta_log.entry(self.uri(name), delta.version()).exists():
            # A commit on top of a table that is gone would leave the new one with a hole in its log.
            raise Conflict(f"{name}: the table was made anew")

    def _unreadable(self, name: str, error: DeltaError) -> UserError:
        first_line = str(error).partition("\n")[0]
        return UserError(f"the table {self.uri(name)} can't be read ({first_line}): {_MEND}")


def _names(delta: DeltaTable, predicate: Predicate | None) -> frozenset[str]:
    """The names of the files that may hold rows that `predicate` means, by Delta's statistics.

    Each has a unique name and never changes: two equal sets are the same rows.
    """
    conditions = [(column, "=", value) for column, value in (predicate or {}).items()]
    uris = delta.file_uris(file_pruning_predicate=conditions or None)
    return frozenset(uri.rpartition("/")[2] for uri in uris)


def _unchanged(delta: DeltaTable, predicate: Predicate | None, before: frozenset[str]) -> bool:
    return _names(delta, predicate) == before


def _matching(predicate: Predicate | None) -> pc.Expression:
    """The rows that `predicate` means, as an expression that is never null."""
    expression = pc.scalar(True)  # noqa: FBT003
    for column, value in (predicate or {}).items():
        expression &= pc.coalesce(pc.field(column) == value, pc.scalar(False))  # noqa: FBT003 # pyright: ignore[reportAttributeAccessIssue]
    return expression


def _missing_columns(name: str, delta: DeltaTable) -> list[pa.Field]:
    present = {field.name for field in delta.schema().fields}
    return [field for field in SCHEMAS[name] if field.name not in present]


def _with_columns_of(schema: pa.Schema, delta: DeltaTable) -> pa.Schema:
    """`schema` and behind it the columns that only the table has: a newer version of this program wrote it."""
    for field in delta.schema().to_arrow():
        if field.name not in schema.names:
            schema = schema.append(pa.field(field))
    return schema


def _conformed(name: str, data: pa.Table | pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """`data` with exactly the columns and types of the table. Missing columns are null: null has no type of its own."""
    schema = SCHEMAS[name].remove_metadata()
    schema = pa.schema([field.remove_metadata() for field in schema])
    unknown = set(data.schema.names) - set(schema.names)
    if unknown:
        raise ValueError(f"the table {name} has no column {', '.join(sorted(unknown))}")
    batches = data.to_batches(max_chunksize=_BATCH_ROWS) if isinstance(data, pa.Table) else data
    for batch in batches:
        columns = [
            batch.column(field.name).cast(field.type)
            if field.name in batch.schema.names
            else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
