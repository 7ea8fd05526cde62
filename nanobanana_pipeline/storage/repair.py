"""Mending a local Delta table after a power cut: what is torn, what can be taken away, and what must be made again.

Tables are derived from the ledger, so nothing here tries to save rows: what can't be trusted goes, and is reported as
having to be rebuilt. Nothing here touches a commit that a live writer may be making: those appear whole or not at all.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from nanobanana_pipeline.storage import delta_log, durable

_ENTRY: Final = re.compile(r"\d{20}\.json\Z")
_CHECKPOINT: Final = re.compile(r"(\d{20})\.checkpoint.*\.parquet\Z")
# What a writer that died leaves of a commit that it never made.
_STAGED: Final = re.compile(r"(_commit_.*\.json\.tmp|.*#\d+)\Z")


BeforeLoss = Callable[[str], None]
"""Told a table's name before rows that it had are taken away: who is killed right after must find out later.

A repair that was killed between taking the torn commit away and writing its rows again left a table of images that
looked whole, and lacked a shard for good.
"""


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing that was found and mended. `rebuild`: rows are missing now, and the table must be made again."""

    table: str
    what: str
    rebuild: bool


def repair_table(folder: Path, older_than_s: float, before_loss: BeforeLoss) -> Iterator[Repair]:
    """Mend the table in `folder`, yielding what was done. Temporary files younger than `older_than_s` are left."""
    name, log = folder.name, folder / "_delta_log"
    if not any(log.glob("*")):
        return
    for entry in sorted(log.iterdir()):
        found = _stat(entry) if _STAGED.match(entry.name) else None
        if found is not None and found.st_mtime <= time.time() - older_than_s:
            entry.unlink(missing_ok=True)
            yield Repair(name, f"removed {entry.name}, left by a writer that died", rebuild=False)
    entries = sorted(entry for entry in log.iterdir() if _ENTRY.match(entry.name))
    while entries and _is_torn(entries[-1]):
        torn = entries.pop()
        before_loss(name)
        if int(torn.stem):
            durable.write_files([(str(torn), _commit_of_nothing())])
            yield Repair(
                name, f"the commit {torn.name} was torn: one that changes nothing is in its place", rebuild=True
            )
        else:
            torn.unlink()
            yield Repair(name, f"removed the torn commit {torn.name}, which was to make the table", rebuild=True)
    for checkpoint in _torn_checkpoints(log):
        checkpoint.unlink(missing_ok=True)
        yield Repair(name, f"removed the torn checkpoint {checkpoint.name}", rebuild=False)
    if _points_nowhere(log / "_last_checkpoint"):
        (log / "_last_checkpoint").unlink(missing_ok=True)
        yield Repair(name, "removed the pointer to a checkpoint that is not there", rebuild=False)
    durable.sync(str(log))
    if reason := _beyond_repair(folder, entries):
        # Kept, in case a person wants to look; the underscore keeps it from being taken for a table.
        before_loss(name)
        aside = folder.with_name(f"_broken-{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        folder.rename(aside)
        durable.sync(str(folder.parent))
        yield Repair(name, f"{reason}: moved to {aside.name}", rebuild=True)
        return
    yield from _missing_data(folder, before_loss)


def _stat(entry: Path) -> os.stat_result | None:
    """What is known of a file of the log; None when it has gone since it was listed.

    Writers at work rename what they have staged, and forget old entries: runs that began beside others ended by this.
    """
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def _commit_of_nothing() -> bytes:
    """What takes a torn commit's place.

    Its version must not go: a reader beside a repair had listed it, and found no file of that name any more; and one
    that had taken the empty file for a commit would never see another of the same version.
    """
    now_ms = time.time_ns() // 1_000_000
    said = {"timestamp": now_ms, "operation": "REPAIR", "operationParameters": {}, "engineInfo": "nanobanana_pipeline"}
    return json.dumps({"commitInfo": said}).encode() + b"\n"


def _torn_checkpoints(log: Path) -> list[Path]:
    torn: list[Path] = []
    for entry in sorted(log.iterdir()):
        if _CHECKPOINT.match(entry.name):
            try:
                pq.read_metadata(entry)
            except FileNotFoundError:
                continue  # a writer beside has just done without it
            except (pa.ArrowException, OSError):
                torn.append(entry)
    return torn


def _points_nowhere(pointer: Path) -> bool:
    try:
        version = int(json.loads(pointer.read_bytes())["version"])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return True
    return not any(pointer.parent.glob(f"{version:020}.checkpoint*.parquet"))


def _is_torn(entry: Path) -> bool:
    data = entry.read_bytes()
    try:
        return not [json.loads(line) for line in data.splitlines()]
    except ValueError:
        return True


def _beyond_repair(folder: Path, entries: list[Path]) -> str | None:
    """Why the table can't be kept; None when it can."""
    empty = [entry.name for entry in entries if (found := _stat(entry)) is not None and found.st_size == 0]
    if empty:
        # Delta takes an empty entry for a commit that changed nothing, and later ones came on top of it.
        return f"the commit {empty[0]} is empty, and there are later ones"
    try:
        DeltaTable(folder)
    except (DeltaError, TableNotFoundError) as error:
        return f"it can't be read ({str(error).partition(chr(10))[0]})"
    return None


def _missing_data(folder: Path, before_loss: BeforeLoss) -> Iterator[Repair]:
    delta = DeltaTable(folder)
    sizes = pa.table(delta.get_add_actions(flatten=True))
    bad = 0
    for path, size in zip(sizes["path"].to_pylist(), sizes["size_bytes"].to_pylist(), strict=True):
        file = folder / path
        if not file.exists():
            bad += 1
        elif file.stat().st_size != size:
            before_loss(folder.name)
            file.unlink()
            bad += 1
    if bad:
        before_loss(folder.name)
        delta.repair(post_commithook_properties=delta_log.NO_HOOKS)
        newest = max(entry for entry in (folder / "_delta_log").iterdir() if _ENTRY.match(entry.name))
        durable.sync(str(newest))
        durable.sync(str(newest.parent))
        yield Repair(folder.name, f"dropped {bad} data files that are missing or torn", rebuild=True)
