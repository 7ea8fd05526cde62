"""Several processes at one table, and processes that die: what only real ones can show."""

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from nanobanana_pipeline.storage.tables import Conflict, Tables
from nanobanana_pipeline_tests.storage.rows import results

SPAWN = multiprocessing.get_context("spawn")


def write_own_shard(root: str, shard: str, times: int) -> None:
    """A run of one shard: commits over and over."""
    tables = Tables(root, simulated=True)
    for i in range(times):
        version = tables.version("results")
        tables.replace("results", results(shard, 2, str(i)), {"shard": shard}, expected_version=version)


def write_shared_shard(root: str, ledger: str, times: int) -> None:
    """A worker that changes the ledger, then brings the table to the ledger's state, as the generation step does."""
    tables = Tables(root, simulated=True)
    with closing(sqlite3.connect(ledger, timeout=30, isolation_level=None)) as book:
        for _ in range(times):
            book.execute("UPDATE state SET n = n + 1")
            while True:
                version = tables.version("results")
                (n,) = book.execute("SELECT n FROM state").fetchone()
                time.sleep(random.random() / 50)  # the longer the view ages, the likelier it is stale
                try:
                    tables.replace("results", results("s", 3, str(n)), {"shard": "s"}, expected_version=version)
                except Conflict:
                    continue
                break


def test_writers_of_different_shards_both_succeed(tmp_path: Path) -> None:
    """One run per shard, many at once: each must get through, and none may undo another."""
    shards = ["a", "b", "c"]
    workers = [SPAWN.Process(target=write_own_shard, args=(str(tmp_path), shard, 12)) for shard in shards]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    found = Counter((row["shard"], row["run_id"]) for row in Tables(tmp_path).read("results").to_pylist())
    assert found == {(shard, "11"): 2 for shard in shards}


def test_writers_of_the_same_shard_end_at_the_ledgers_state(tmp_path: Path) -> None:
    """Two workers may hold the same shard for a moment; whoever is last, the table must tell what the ledger says."""
    ledger = str(tmp_path / "ledger.sqlite")
    with closing(sqlite3.connect(ledger)) as book:
        book.execute("CREATE TABLE state (n INTEGER)")
        book.execute("INSERT INTO state VALUES (0)")
        book.commit()
    workers = [SPAWN.Process(target=write_shared_shard, args=(str(tmp_path), ledger, 10)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    found = [row["run_id"] for row in Tables(tmp_path).read("results").to_pylist()]
    assert found == ["30", "30", "30"]


WRITE_FOR_EVER = """
import itertools, sys
from nanobanana_pipeline.storage import delta_log
from nanobanana_pipeline.storage.tables import Tables
from nanobanana_pipeline_tests.storage.rows import results
delta_log.CHECKPOINT_EVERY = 3
tables = Tables({root!r}, simulated=True)
for i in itertools.count():
    for shard in ("a", "b"):
        version = tables.version("results")
        tables.replace("results", results(shard, 4, str(i)), {{"shard": shard}}, expected_version=version)
    print(i, flush=True)
"""


def test_a_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    """`kill -9` at any moment: each shard is as one writing left it, no older than what was confirmed."""
    confirmed = -1
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER.format(root=str(tmp_path))], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            confirmed = int(child.stdout.readline())
            time.sleep(random.random() / 5)
            os.kill(child.pid, signal.SIGKILL)
            for line in child.stdout:
                confirmed = int(line)
        tables = Tables(tmp_path)
        assert not [repair for repair in tables.repair(lambda _: None) if repair.table == "results"]
        found = Counter((row["shard"], row["run_id"]) for row in tables.read("results").to_pylist())
        assert {shard for shard, _ in found} == {"a", "b"}
        assert len(found) == 2
        assert set(found.values()) == {4}
        assert all(int(mark) >= confirmed for _, mark in found)


DIE = """
import os
from nanobanana_pipeline.storage import {module}
from nanobanana_pipeline.storage.tables import Tables
from nanobanana_pipeline_tests.storage.rows import results
real = {module}.{name}
def die(*args, **options):
    if {after}:
        real(*args, **options)
    os._exit(9)
{module}.{name} = die
tables = Tables({root!r}, simulated=True)
tables.replace("results", results("a", 2, "new"), {{"shard": "a"}}, expected_version=tables.version("results"))
"""


@pytest.mark.parametrize(
    ("module", "name", "after", "expected"),
    [
        ("delta_log", "commit", False, "old"),
        ("delta_log", "commit", True, "new"),
        ("delta_log", "settle", False, "new"),
        ("durable", "sync", False, "old"),
    ],
)
def test_a_crash_at_each_step(tmp_path: Path, module: str, name: str, after: bool, expected: str) -> None:  # noqa: FBT001
    """Before the commit nothing has happened, after it everything has; and the next writer goes on as ever."""
    tables = Tables(tmp_path, simulated=True)
    tables.replace("results", results("a", 2, "old"), {"shard": "a"}, expected_version=tables.version("results"))
    code = DIE.format(module=module, name=name, after=after, root=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [row["run_id"] for row in tables.read("results").to_pylist()] == [expected] * 2
    tables.replace("results", results("a", 1, "next"), {"shard": "a"}, expected_version=tables.version("results"))
    assert [row["run_id"] for row in tables.read("results").to_pylist()] == ["next"]
