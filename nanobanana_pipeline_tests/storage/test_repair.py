"""What a power cut leaves behind, made by hand: each must be found, mended and told."""

import os
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.storage import delta_log
from nanobanana_pipeline.storage.repair import Repair
from nanobanana_pipeline.storage.tables import Conflict, Tables
from nanobanana_pipeline_tests.storage.rows import results


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Three commits of three shards."""
    tables = Tables(tmp_path, simulated=True)
    for shard in "abc":
        put(tables, shard)
    return tables


def put(tables: Tables, shard: str) -> int:
    """Write one shard."""
    return tables.replace("results", results(shard, 2), {"shard": shard}, expected_version=tables.version("results"))


def log(tables: Tables) -> Path:
    """The log's folder."""
    return Path(tables.uri("results"), "_delta_log")


def repaired(tables: Tables) -> list[Repair]:
    """What repair finds in the table `results`."""
    return [repair for repair in tables.repair(lambda _: None) if repair.table == "results"]


def shards(tables: Tables) -> set[str]:
    """The shards that have rows."""
    return set(tables.read("results")["shard"].to_pylist())


def test_a_sound_table_is_left_alone(tables: Tables) -> None:
    """Repair runs before every run: it must not touch what is good."""
    before = {path: path.stat().st_mtime_ns for path in Path(tables.uri("results")).rglob("*")}
    assert repaired(tables) == []
    assert {path: path.stat().st_mtime_ns for path in Path(tables.uri("results")).rglob("*")} == before


@pytest.mark.parametrize("torn", [b"", b'{"commitInfo":{"timest', b"\0" * 300])
def test_a_torn_latest_commit_is_told_and_mended(tables: Tables, torn: bytes) -> None:
    """Delta ignores an empty one without a word: rows would be missing, and nobody would know."""
    delta_log.entry(tables.uri("results"), 3).write_bytes(torn)
    with pytest.raises(UserError, match="nanobanana repair"):
        tables.version("results")
    (repair,) = repaired(tables)
    assert repair.rebuild
    assert "00000000000000000003.json" in repair.what
    assert shards(tables) == {"a", "b"}
    put(tables, "c")
    assert shards(tables) == {"a", "b", "c"}
    assert repaired(tables) == []


def test_several_torn_commits_are_mended(tables: Tables) -> None:
    """A power cut takes whatever was not flushed, not just the last."""
    for version in (2, 3):
        delta_log.entry(tables.uri("results"), version).write_bytes(b"")
    assert [repair.rebuild for repair in repaired(tables)] == [True, True]
    assert shards(tables) == {"a"}


def test_what_a_checkpoint_holds_of_a_torn_commit_is_not_lost(tables: Tables) -> None:
    """Only a failing disk can do this, as a commit is flushed before it is summed up."""
    newest = tables.ensure("results")
    delta_log.checkpoint(tables.uri("results"))
    delta_log.entry(tables.uri("results"), newest).write_bytes(b"")
    assert any(repair.rebuild for repair in repaired(tables))
    assert tables.version("results") == newest
    assert shards(tables) == {"a", "b", "c"}
    assert put(tables, "c") == newest + 1
    assert repaired(tables) == []


def test_a_reader_that_took_a_torn_commit_for_an_empty_one_sees_what_comes_after(tables: Tables) -> None:
    """The torn commit was taken away once: a reader that had listed it met a file that was not there."""
    delta_log.entry(tables.uri("results"), 3).write_bytes(b"")
    reader = DeltaTable(tables.uri("results"))
    repaired(tables)
    put(tables, "c")
    reader.update_incremental()
    assert reader.to_pyarrow_table()["shard"].to_pylist().count("c") == 2


def test_a_table_whose_first_commit_is_torn_is_made_anew(tables: Tables) -> None:
    """There is nothing to go by in it, not even its columns."""
    for version in (1, 2, 3):
        delta_log.entry(tables.uri("results"), version).unlink()
    delta_log.entry(tables.uri("results"), 0).write_bytes(b"")
    assert any("_broken-results-" in repair.what for repair in repaired(tables))
    put(tables, "a")
    assert shards(tables) == {"a"}


def test_an_empty_commit_under_later_ones_condemns_the_table(tables: Tables) -> None:
    """What it held can't be known any more, and the ledger can give all of it again."""
    delta_log.entry(tables.uri("results"), 2).write_bytes(b"")
    found = repaired(tables)
    assert any("_broken-results-" in repair.what and repair.rebuild for repair in found)
    assert tables.version("results") is None
    put(tables, "a")
    assert shards(tables) == {"a"}


def test_a_table_without_its_beginning_is_condemned(tables: Tables) -> None:
    """Files that someone deleted from the log can't be guessed."""
    delta_log.entry(tables.uri("results"), 0).unlink()
    assert any(repair.rebuild for repair in repaired(tables))
    put(tables, "a")
    assert shards(tables) == {"a"}


@pytest.mark.parametrize("length", [0, 100])
def test_a_torn_checkpoint_is_removed(tables: Tables, length: int) -> None:
    """A checkpoint only sums up what the log says; torn, it keeps everyone from opening the table."""
    delta_log.checkpoint(tables.uri("results"))
    (checkpoint,) = log(tables).glob("*.checkpoint.parquet")
    os.truncate(checkpoint, length)
    found = repaired(tables)
    assert found
    assert not any(repair.rebuild for repair in found)
    assert shards(tables) == {"a", "b", "c"}


@pytest.mark.parametrize("pointer", ["", '{"version":', '{"version":99,"size":3}', "[]"])
def test_a_pointer_to_no_checkpoint_is_removed(tables: Tables, pointer: str) -> None:
    """The pointer is flushed last, so it may be torn or ahead of what it points to."""
    (log(tables) / "_last_checkpoint").write_text(pointer)
    assert [repair.rebuild for repair in repaired(tables)] == [False]
    assert shards(tables) == {"a", "b", "c"}


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_lost_data_files_are_dropped(tables: Tables, damage: str) -> None:
    """A table that names a file that is not there can't be read at all."""
    (file,) = tables.snapshot("results", {"shard": "b"}).uris
    if damage == "missing":
        Path(file).unlink()
    else:
        os.truncate(file, 100)
    (repair,) = repaired(tables)
    assert repair.rebuild
    assert "1 data file" in repair.what
    assert shards(tables) == {"a", "c"}


def test_leftovers_of_dead_writers_go_and_living_ones_stay(tables: Tables) -> None:
    """A commit is staged under another name first; a fresh one may be another worker's."""
    old, fresh = log(tables) / "00000000000000000004.json#1", log(tables) / "00000000000000000004.json#2"
    for staged in (old, fresh):
        staged.write_text("{}")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    assert [repair.rebuild for repair in repaired(tables)] == [False]
    assert not old.exists()
    assert fresh.exists()


def test_what_goes_while_it_is_looked_at_is_nobody_s_loss(tables: Tables) -> None:
    """Writers at work rename what they staged and forget old entries: a run that began beside them ended by that.

    Links to nowhere are listed and then not there, as such files are.
    """
    delta_log.checkpoint(tables.uri("results"))
    delta_log.entry(tables.uri("results"), 0).unlink()
    gone = ("00000000000000000004.json#1", "00000000000000000000.json", "00000000000000000001.checkpoint.parquet")
    for name in gone:
        (log(tables) / name).symlink_to("nowhere")
    assert repaired(tables) == []
    assert shards(tables) == {"a", "b", "c"}


def test_a_deleted_table_is_told(tables: Tables) -> None:
    """Someone deleted a folder to have it made again: writing one shard to a new table would hide the others' loss."""
    assert Repair("images", "is not there", rebuild=True) in tables.repair(lambda _: None)
    assert not [repair for repair in tables.repair(lambda _: None) if repair.table == "reconciliation"]


def test_a_writer_never_commits_on_top_of_a_vanished_table(tables: Tables) -> None:
    """Its commit would leave the new table's log with a hole that no reader gets over."""
    version = tables.version("results")
    Path(tables.uri("results")).rename(Path(tables.uri("results")).with_name("_gone"))
    other = Tables(tables.root, simulated=True)
    put(other, "z")
    with pytest.raises(Conflict):
        tables.replace("results", results("a"), {"shard": "a"}, expected_version=version)
    assert shards(other) == {"z"}
