"""A whole shard whose output is a bucket, on a store that is busy, slow, and loses answers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.reporting.pages import write_site
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline.storage.query import run_query
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.servers.object_store import Fault, Happening, ObjectStoreProcess

pytestmark = pytest.mark.postgres


@pytest.fixture
def remote(tmp_path: Path, simulator: Callable[..., SimulatorProcess], bucket: str, postgres_url: str) -> Pipeline:
    """A pipeline that keeps nothing on this machine: the ledger is in PostgreSQL, all else in a bucket."""
    return Pipeline(tmp_path, simulator(latency=0.01, cached_picture=True), ledger_url=postgres_url, bucket=bucket)


def objects(uri: str) -> list[str]:
    """The paths of all objects below `uri`, relative to it."""
    store, base = open_uri(uri)
    return [path.removeprefix(f"{base}/") for path in store.find(base)]


def test_a_shard_with_everything_in_a_bucket(remote: Pipeline, bucket: str) -> None:
    """Images, tables, pages and queries: what works over a folder works over a bucket. Nothing else is left there."""
    remote.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(5)])

    (report,) = remote.run()

    assert report.tally.succeeded == 5
    remote.assert_books_agree()
    output = f"{bucket}/output"
    assert "5" in str(run_query(output, "SELECT count(*) FROM results WHERE status = 'succeeded'", "csv"))
    with remote.open() as workspace:
        assert write_site(workspace).gallery == f"{output}/site/gallery.html"
        assert all(workspace.images.matches(row["path"], row["sha256"]) for row in remote.table("images"))
    kinds = {path.partition("/")[0] for path in objects(output)}
    assert kinds == {"images", "tables", "site", "thumbnails"}


def test_analysts_read_the_bucket_with_their_own_tools(remote: Pipeline, bucket: str) -> None:
    """docs/tables.md shows these lines: each must give the rows."""
    remote.write([{"prompt": "a fox"}])
    remote.run()
    uri = f"{bucket}/output/tables/results"
    options = {"allow_http": "true"}

    table = DeltaTable(uri, storage_options=options)
    assert table.to_pandas()["status"].tolist() == ["succeeded"]
    assert pl.read_delta(uri, storage_options=options)["status"].to_list() == ["succeeded"]
    with duckdb.connect() as connection:
        connection.register("results", table.to_pyarrow_dataset())
        assert connection.execute("SELECT status FROM results").fetchall() == [("succeeded",)]


@pytest.mark.parametrize("what", ["busy", "lost", "cut", "torn"])
def test_a_store_on_a_bad_day_costs_time_alone(
    remote: Pipeline, bucket: str, object_store: ObjectStoreProcess, what: Happening
) -> None:
    """Every kind of object meets the fault: an image, a table's file, its commit, and what is read again."""
    remote.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(3)])
    object_store.let_fail(
        Fault(what=what, path="/images/", times=2),
        Fault(what=what, method="PUT", path=r"/_delta_log/0+1\.json", times=2),
        Fault(what=what, method="PUT", path=r"part-.*\.parquet"),
        Fault(what=what, method="GET", path="/tables/", times=2),
    )

    remote.run()

    remote.assert_books_agree()
    assert [row["status"] for row in remote.table("results")] == ["succeeded"] * 3
    assert len(remote.accepted()) == 3


def test_a_store_that_refuses_is_said_in_a_line_and_loses_nothing(
    remote: Pipeline, object_store: ObjectStoreProcess
) -> None:
    """Paid for, and not to be stored: the next run fetches it, and pays nothing."""
    remote.write([{"prompt": "a fox"}])
    object_store.let_fail(Fault(what="denied", method="PUT", path="/images/", times=1000))
    with pytest.raises(UserError, match="object store"):
        remote.run()

    object_store.let_fail()
    remote.run()

    assert len(remote.billed()) == 1
    remote.assert_books_agree()


def test_a_killed_worker_leaves_only_whole_objects(
    remote: Pipeline, bucket: str, object_store: ObjectStoreProcess
) -> None:
    """The bucket's readers never see half an image or half a table, whenever a writer dies; the next run finishes."""
    remote.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(4)])
    object_store.let_fail(Fault(what="slow", method="PUT", path="p3-", times=1))
    worker = subprocess.Popen(
        [sys.executable, "-m", "nanobanana_pipeline_tests.chaos.worker", "killed"],
        env=remote.environment,
        stdout=subprocess.DEVNULL,
    )
    while not any("images/" in path for path in objects(bucket)):
        assert worker.poll() is None
    worker.kill()
    worker.wait()

    store, base = open_uri(f"{bucket}/output")
    for path in objects(f"{bucket}/output"):
        if path.endswith(".parquet"):
            with store.open(f"{base}/{path}") as file:
                pq.read_metadata(file)
    remote.run()
    assert len(remote.accepted()) == 4
    remote.assert_books_agree()


def test_an_output_needs_a_store_that_can_commit(postgres_url: str) -> None:
    """Said at once and in one line, not by the first commit to a table."""
    with pytest.raises(UserError, match="NANOBANANA_OUTPUT=ftp://host/x"):
        Workspace.open(load_settings(api_key="k", output="ftp://host/x", ledger_url=postgres_url))
