"""Commits to a Delta table's log: each tried once, each on the disk before anything relies on it.

Delta's own writer retries by rules of its own and flushes nothing, so both are done here. What a commit is to change is
decided in `tables`.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from nanobanana_pipeline.object_stores.opening import DELTA_OPTIONS, ObjectStoreError
from nanobanana_pipeline.storage import durable
from nanobanana_pipeline.storage.data_files import DataFiles

# A commit is good for the version that was looked at, and no other: Delta's own retries would let two writers that both
# find a shard empty write it twice.
ONCE: Final = CommitProperties(max_commit_retries=0)
# Delta would write its checkpoint before the commit that it sums up is durable.
NO_HOOKS: Final = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

CHECKPOINT_EVERY: Final = 25
"""Commits. A checkpoint costs about 60 ms, and each commit since the last one about 1 ms at every opening."""

LOG_KEPT_S: Final = 600
VERSIONS_KEPT: Final = 400
"""For a look back: older ones go, unless they are of the last minutes, which a writer may have begun from.

Opening a table and committing to it look at every entry of the log: 2,000 of them take 25 ms, 400 five.
"""

_TRIES: Final = 4

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does to a table's files. The new ones are on the disk already."""

    files: DataFiles
    adds: list[AddAction]
    removes: list[str]
    data_change: bool = True

    @property
    def paths(self) -> frozenset[str]:
        """The new files."""
        return frozenset(add.path for add in self.adds)

    def discard(self) -> None:
        """Delete the new files of a change that was certainly never committed."""
        self.files.remove(self.paths)


def open_table(uri: str, version: int | None = None) -> DeltaTable:
    """The table at `uri`, as it is or was; raises what Delta raises when there is none."""
    return asked(uri, lambda: DeltaTable(uri, version=version, storage_options=options(uri)))


def asked(uri: str, question: Callable[[], T], tries: int = _TRIES) -> T:
    """The answer to what may be asked again: Delta gives up at the first answer of a store that is cut off halfway."""
    try:
        return question()
    except OSError as error:
        if not durable.is_remote(uri):
            raise
        if tries == 1:
            raise ObjectStoreError(uri, error) from None
    return asked(uri, question, tries - 1)


def options(uri: str) -> dict[str, str] | None:
    """How Delta opens the place of a table."""
    return DELTA_OPTIONS if durable.is_remote(uri) else None


def commit(delta: DeltaTable, change: Change) -> bool:
    """Commit `change` as the version after `delta`'s; False when that one is taken, by someone else as a rule."""
    now = time.time_ns() // 1_000_000
    removes = [RemoveAction(file, change.data_change, now) for file in change.removes]
    try:
        delta.create_write_transaction(
            [*change.adds, *removes],
            "append",
            delta.schema(),
            commit_properties=ONCE,
            post_commithook_properties=NO_HOOKS,
        )
    except (CommitFailedError, OSError) as error:
        # A store may take a commit and lose the answer, which the log tells.
        if isinstance(error, OSError) and not durable.is_remote(delta.table_uri):
            raise
        seen = delta.version()
        asked(delta.table_uri, delta.update_incremental)
        if delta.version() != seen:
            return False
        if isinstance(error, OSError):
            raise ObjectStoreError(delta.table_uri, error) from None
        raise  # not for another's commit, then
    return True


def entry(uri: str, version: int) -> Path:
    """The log entry of a version of a local table."""
    return Path(uri, "_delta_log", f"{version:020}.json")


def settle(uri: str, version: int) -> int:
    """Make the commit of `version` durable, and sum up the log now and then; the version again."""
    sync(uri, version)
    if version % CHECKPOINT_EVERY == 0:
        checkpoint(uri)
    return version


def sync(uri: str, version: int) -> None:
    """Flush the log entry of `version` to the disk. An object store needs none of this."""
    if not durable.is_remote(uri):
        durable.sync(str(entry(uri, version)))
        durable.sync(f"{uri}/_delta_log")


def checkpoint(uri: str) -> None:
    """Sum up the log, so that opening the table stays cheap. The commits stand whether this works or not."""
    try:
        delta = open_table(uri)
        delta.create_checkpoint()
        if not durable.is_remote(uri):
            log = Path(uri, "_delta_log")
            for file in log.glob(f"{delta.version():020}.checkpoint*.parquet"):
                durable.sync(str(file))
            durable.sync(str(log / "_last_checkpoint"))
            durable.sync(str(log))
        # Only now: until the checkpoint is safe, the entries are all there is.
        if durable.is_remote(uri):
            delta.cleanup_metadata()
        else:
            _forget(Path(uri, "_delta_log"), delta.version() - VERSIONS_KEPT)
    except (DeltaError, OSError) as error:
        _log.warning("no checkpoint of %s, which only makes it slower to open: %s", uri, error)


def _forget(log: Path, version: int) -> None:
    """Remove the log before the last checkpoint up to `version`, from which every later version can be read."""
    checkpoints = [file for file in log.glob("*.checkpoint*.parquet") if _version_of(file) <= version]
    first = max(map(_version_of, checkpoints), default=0)
    latest = time.time() - LOG_KEPT_S
    for file in [*checkpoints, *log.glob("*.json")]:
        if _version_of(file) < first and file.stat().st_mtime <= latest:
            file.unlink(missing_ok=True)


def _version_of(file: Path) -> int:
    return int(file.name.partition(".")[0])
