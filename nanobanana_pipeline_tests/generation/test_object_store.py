"""A whole shard whose output is a bucket, on a store that is busy, slow, and loses answers."""

import hashlib
import random
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.reporting.pages import write_site
from nanobanana_pipeline.reporting.site import SiteFolder
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline.storage.images import ImageStore
from nanobanana_pipeline.storage.query import run_query
from nanobanana_pipeline.storage.tables import Tables
from nanobanana_pipeline_tests.e2e.command import Place
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.servers.object_store import Fault, Happening, ObjectStoreProcess
from nanobanana_pipeline_tests.servers.other_stores import Azurite, LocalBucket, OwnS3
from nanobanana_pipeline_tests.storage.rows import results

pytestmark = pytest.mark.postgres

SCALE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


@pytest.fixture
def remote(tmp_path: Path, simulator: Callable[..., SimulatorProcess], bucket: str, postgres_url: str) -> Pipeline:
    """A pipeline that keeps nothing on this machine: the ledger is in PostgreSQL, all else in a bucket."""
    return Pipeline(tmp_path, simulator(latency=0.01, cached_picture=True), ledger_url=postgres_url, bucket=bucket)


def fetched(link: str) -> bytes:
    """What a browser without any key gets by a link."""
    with urllib.request.urlopen(link, timeout=60) as answer:  # noqa: S310 - a store of ours
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


def test_analysts_read_the_bucket_with_their_own_tools(
    remote: Pipeline, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/scale.md shows these lines, and no others are tried: each must give the rows."""
    remote.write([{"prompt": f"a fox {n}"} for n in range(3)])
    remote.run()
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    section = SCALE.partition("\n## Reading the tables from a bucket\n")[2].partition("\n## ")[0]
    found: dict[str, Any] = {}

    for example in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(example.replace("s3://bucket/output", f"{bucket}/output"), found)  # noqa: S102 - our own page

    assert found["by_duckdb"]["items"].tolist() == [3]
    assert found["by_pandas"].to_dict() == {"succeeded": sum(row["cost_usd"] for row in remote.table("results"))}
    assert found["by_polars"].height == 3
    assert found["by_polars"]["status"].unique().to_list() == ["succeeded"]
    assert found["pixels"].tobytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_work_over_a_bucket(remote: Pipeline, bucket: str) -> None:
    """What a person types is the same, wherever the output is."""
    remote.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(3)])
    remote.run()
    place = Place(remote.folder, remote.environment)

    assert [row["n"] for row in place.run("query", "SELECT count(*) AS n FROM images", "--format", "json").json] == [3]
    (item,) = place.run("query", "SELECT min(item_id) AS id FROM results", "--format", "json").json
    for words in (["status"], ["plan"], ["explain", item["id"]], ["repair"], ["validate"]):
        ended = place.run(*words)
        assert (words, ended.code, ended.err.count("Traceback")) == (words, 0, 0), ended.err
    report = place.run("report")
    assert fetched(report.out.split()[-1]).startswith(b"<!doctype html>")
    assert place.run("export", "--format", "folder", "--to", str(remote.folder / "handed")).code == 0
    handed = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (remote.folder / "handed").rglob("p*.*")}
    assert handed == {row["sha256"] for row in remote.table("images")}


def test_two_writers_of_one_table_lose_nothing(bucket: str) -> None:
    """Eight shards end at the same moment on as many machines: each commit is made, on top of the others'."""
    tables = [Tables(f"{bucket}/output") for _ in range(8)]
    tables[0].ensure("results")

    with ThreadPoolExecutor(len(tables)) as pool:
        list(pool.map(lambda each: each[1].append("results", results(f"cat-{each[0]:06}", 2)), enumerate(tables)))

    assert sorted(set(tables[0].read("results").column("shard").to_pylist())) == [f"cat-{n:06}" for n in range(8)]
    assert tables[0].read("results").num_rows == 16


def test_a_large_object_shows_when_it_is_whole(bucket: str, object_store: ObjectStoreProcess) -> None:
    """A 4K image goes up in parts; a reader sees nothing of it before the last, even when one has to be sent again."""
    images = ImageStore(f"{bucket}/output")
    large = random.Random(7).randbytes(17_000_000)
    object_store.let_fail(Fault(what="busy", method="PUT", path="large", times=2))

    images.write("images/large.png", large)
    assert images.matches("images/large.png", hashlib.sha256(large).hexdigest())

    object_store.let_fail(Fault(what="denied", method="PUT", path="second", times=100))
    with pytest.raises(UserError, match="object store"):
        images.write("images/second.png", large)
    object_store.let_fail()
    assert objects(f"{bucket}/output") == ["images/large.png"]


def test_repair_fetches_and_rebuilds_what_somebody_deleted(remote: Pipeline, bucket: str) -> None:
    """A lifecycle rule too many, or a hand: what the provider still has comes back, at no cost."""
    remote.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(3)])
    remote.run()
    store, base = open_uri(f"{bucket}/output")
    lost = next(path for path in objects(f"{bucket}/output") if path.startswith("images/"))
    store.rm_file(f"{base}/{lost}")
    for path in objects(f"{bucket}/output/tables/attempts"):
        store.rm_file(f"{base}/tables/attempts/{path}")

    ended = Place(remote.folder, remote.environment).run("repair")

    assert ended.code == 0, ended.err
    assert lost in objects(f"{bucket}/output")
    assert len(remote.accepted()) == 3
    remote.assert_books_agree()


@pytest.mark.parametrize("what", ["busy", "lost", "cut", "torn", "slow"])
def test_a_store_on_a_bad_day_costs_time_alone(
    remote: Pipeline, bucket: str, object_store: ObjectStoreProcess, what: Happening
) -> None:
    """Every kind of object meets the fault: an image, a table's file, its commit, and what is read again."""
    remote.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(3)])
    object_store.let_fail(
        Fault(what=what, path="/images/", times=2),
        Fault(what=what, method="PUT", path=r"/_delta_log/0+1\.json", times=2),
        Fault(what=what, method="PUT", path=r"part-.*\.parquet", times=2),
        Fault(what=what, method="GET", path="/tables/", times=2),
    )

    remote.run()

    remote.assert_books_agree()
    assert [row["status"] for row in remote.table("results")] == ["succeeded"] * 3
    assert len(remote.accepted()) == 3


@pytest.mark.parametrize("path", ["/output/images/", r"/attempts/part-.*\.parquet", r"/results/_delta_log/"])
def test_a_store_that_refuses_is_said_in_a_line_and_loses_nothing(
    remote: Pipeline, object_store: ObjectStoreProcess, path: str
) -> None:
    """Paid for, and not to be stored: the next run fetches it, and pays nothing."""
    remote.write([{"prompt": "a fox"}])
    object_store.let_fail(Fault(what="denied", method="PUT", path=path, times=1000))
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
        stdin=subprocess.DEVNULL,
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
