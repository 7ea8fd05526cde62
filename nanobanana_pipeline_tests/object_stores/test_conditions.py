"""Which stores may hold tables: those on which one writer alone wins, whoever made them."""

import importlib.util
import urllib.error
import urllib.request
from collections.abc import Callable
from uuid import uuid4

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.object_stores.conditions import refuse_heedless
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline_tests.servers.object_store import Fault, ObjectStoreProcess
from nanobanana_pipeline_tests.servers.other_stores import Swift


def test_a_store_that_keeps_the_condition_is_taken_and_left_clean(
    bucket: str, object_store: ObjectStoreProcess
) -> None:
    """Asked once a process: a worker that writes a thousand shards must not ask a thousand times."""
    refuse_heedless(f"{bucket}/tables")

    object_store.let_fail(Fault(what="denied", times=1000))
    refuse_heedless(f"{bucket}/tables")

    object_store.let_fail()
    store, base = open_uri(bucket)
    assert store.find(base) == []


def test_a_store_that_overlooks_the_condition_is_refused_before_it_holds_anything(
    bucket: str, object_store: ObjectStoreProcess
) -> None:
    """Two commits would both be taken there, and the rows of one of them be gone without a word."""
    object_store.let_fail(Fault(what="heedless", method="PUT", times=1000))
    with pytest.raises(UserError, match=r"can't hold tables: of 8 .* 8 were told"):
        refuse_heedless(f"{bucket}/tables")
    # It is asked again, not remembered: a person may have mended it.
    object_store.let_fail()
    refuse_heedless(f"{bucket}/tables")


def test_a_lost_answer_is_not_taken_for_heedlessness(bucket: str, object_store: ObjectStoreProcess) -> None:
    """The winner asks again, and is told that somebody was faster: nobody wins then, and nothing is wrong."""
    object_store.let_fail(Fault(what="lost", method="PUT", path="_condition", times=3))

    refuse_heedless(f"{bucket}/tables")


@pytest.mark.slow
def test_another_makers_store_takes_our_links_and_is_refused_for_its_races(
    monkeypatch: pytest.MonkeyPatch, require: Callable[[str, bool, str], None]
) -> None:
    """OpenStack Swift keeps the condition for writers who come one after the other, and for no others.

    Unlike the other servers here it looks at signatures: ours is good for one object alone.
    """
    require("swift", importlib.util.find_spec("swift") is not None, "it is one of the development extra, on Linux")
    name = f"bucket-{uuid4().hex[:12]}"
    with Swift.running() as store:
        for variable, value in store.environment.items():
            monkeypatch.setenv(variable, value)
        store.make_bucket(name)
        files, base = open_uri(f"s3://{name}")
        for letter in "ab":
            files.pipe_file(f"{base}/{letter}.html", letter.encode())
        (link,) = files.sign_all([f"{base}/a.html"], 3600)
        with urllib.request.urlopen(link, timeout=60) as answer:  # noqa: S310 - ours
            assert (answer.read(), answer.headers["Content-Type"]) == (b"a", "text/html")
        for wrong in (link.replace("a.html", "b.html"), link.replace("Expires=3600", "Expires=7200")):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(wrong, timeout=60)  # noqa: S310

        with pytest.raises(UserError, match="can't hold tables"):
            _refuse_often(f"s3://{name}")


def _refuse_often(bucket: str) -> None:
    """Ask anew for each of twenty folders: on a busy machine, eight writers may pass one by one, three times over."""
    for number in range(20):
        refuse_heedless(f"{bucket}/tables-{number}")
