"""A whole shard whose output is a bucket, on a store that is busy, slow, and loses answers."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.reporting.pages import write_site
from nanobanana_pipeline.reporting.site import SiteFolder
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline.storage.query import run_query
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.servers.object_store import Fault, Happening, ObjectStoreProcess
from nanobanana_pipeline_tests.servers.other_stores import Azurite, LocalBucket, OwnS3

pytestmark = pytest.mark.postgres


@pytest.fixture
def remote(tmp_path: Path, simulator: Callable[..., SimulatorProcess], bucket: str, postgres_url: str) -> Pipeline:
    """A pipeline that keeps nothing on this machine: the ledger is in PostgreSQL, all else in a bucket."""
    return Pipeline(tmp_path, simulator(latency=0.01, cached_picture=True), ledger_url=postgres_url, bucket=bucket)


def fetched(link: str) -> bytes:
    """What a browser without any key gets by a link."""
    with urllib.request.urlopen(link, timeout=10) as answer:  # noqa: S310 - a store of ours
        return answer.read()


def objects(uri: str) -> list[str]:
    """The paths of all objects below `uri`, relative to it."""
    store, base = open_uri(uri)
    return [path.removeprefix(f"{base}/") for path in store.find(base)]


STORES: list[tuple[type[LocalBucket | Azurite | OwnS3], bool, str]] = [
    (LocalBucket, True, ""),
    (Azurite, Azurite.command is not None, "npm install -g azurite"),
    (OwnS3, OwnS3.url != "", "set NANOBANANA_TEST_S3 to http://HOST:PORT/BUCKET of a server of yours, and its keys"),
]


@pytest.fixture(params=["moto", *STORES], ids=["moto", *(kind.__name__ for kind, *_ in STORES)])
def any_bucket(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    require: Callable[[str, bool, str], None],
) -> Iterator[str]:
    """The URI of an empty bucket, in a store of each kind that is to be had here."""
    if request.param == "moto":
        yield request.getfixturevalue("bucket")
        return
    kind, found, advice = request.param
    require(kind.__name__, found, advice)
    with kind.running() as store:
        for variable, value in store.environment.items():
            monkeypatch.setenv(variable, value)
        yield f"{kind.scheme}://{store.make_bucket(f'bucket-{uuid4().hex[:12]}')}"


def test_a_shard_with_everything_in_a_bucket(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], any_bucket: str
) -> None:
    """Images, tables, pages and queries: what works over a folder works over a bucket. Nothing else is left there."""
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite"
    remote = Pipeline(tmp_path, simulator(latency=0.01, cached_picture=True), ledger_url=ledger, bucket=any_bucket)
    remote.write([{"prompt": f"a fox {n}", "prompt_id": f"p {n}/ü"} for n in range(5)])

    (report,) = remote.run()

    assert report.tally.succeeded == 5
    remote.assert_books_agree()
    output = f"{any_bucket}/output"
    assert "5" in str(run_query(output, "SELECT count(*) FROM results WHERE status = 'succeeded'", "csv"))
    with remote.open() as workspace:
        site = write_site(workspace)
        assert site.gallery == f"{output}/site/gallery.html"
        images = [row["path"] for row in remote.table("images")]
        assert all(workspace.images.matches(row["path"], row["sha256"]) for row in remote.table("images"))
        links = SiteFolder(workspace).links(images)
        assert [len(fetched(links[path])) for path in images] == [row["bytes"] for row in remote.table("images")]
        assert fetched(site.link).startswith(b"<!doctype html>")
    kinds = {path.partition("/")[0] for path in objects(output)}
    assert kinds == {"images", "tables", "site", "thumbnails"}
    assert not [path for path in objects(output) if "_condition" in path]


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
