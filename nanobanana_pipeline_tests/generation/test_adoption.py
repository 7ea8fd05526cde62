"""A ledger that was lost, or set back to an older copy: noticed before anything is paid again, and made good."""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from nanobanana_pipeline.catalogue.validation import CataloguePrompt
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.adoption import adopt_tables
from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.shard_run import generate_shard
from nanobanana_pipeline.ledger.work import Rerun
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.ledger.books import SPEC, prompt

ROWS: list[dict[str, Any]] = [{"prompt_id": f"p{n}", "prompt": f"a picture of {n}", "samples": 1} for n in range(4)]


@dataclass
class World:
    """A pipeline, and what can happen to its ledger."""

    pipeline: Pipeline

    @property
    def _file(self) -> Path:
        return self.pipeline.folder / "output" / "ledger.sqlite"

    def lose_ledger(self) -> None:
        """Someone deleted it."""
        if self.pipeline.ledger_url:
            self._database("DROP DATABASE {name} WITH (FORCE)", "CREATE DATABASE {name} TEMPLATE template0")
            return
        for file in self._file.parent.glob("ledger.sqlite*"):
            file.unlink()

    def back_up(self) -> None:
        """Copy it, as every night."""
        if self.pipeline.ledger_url:
            self._database("CREATE DATABASE {name}_backup TEMPLATE {name}")
        else:
            shutil.copy(self._file, self.pipeline.folder / "backup.sqlite")

    def restore(self) -> None:
        """Put the copy back in its place."""
        if self.pipeline.ledger_url:
            self._database("DROP DATABASE {name} WITH (FORCE)", "ALTER DATABASE {name}_backup RENAME TO {name}")
            return
        self.lose_ledger()
        shutil.copy(self.pipeline.folder / "backup.sqlite", self._file)

    def _database(self, *commands: str) -> None:
        import psycopg  # noqa: PLC0415 - an optional dependency

        url = make_url(self.pipeline.ledger_url or "")
        server = url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
        with psycopg.connect(server, autocommit=True) as connection:
            for command in commands:
                connection.execute(command.format(name=url.database).encode())


@pytest.fixture(params=["files", pytest.param("servers", marks=pytest.mark.postgres)])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, simulator: Callable[..., SimulatorProcess]
) -> Callable[..., World]:
    """`world(knobs={...})`: all in files of this machine; or the ledger in PostgreSQL, and the rest in a bucket."""

    def make(*, knobs: dict[str, Any] | None = None) -> World:
        pipeline = Pipeline(tmp_path, simulator(latency=0.02, cached_picture=True), knobs=knobs or {})
        if request.param == "servers":
            pipeline.ledger_url = request.getfixturevalue("postgres_url")
            pipeline.bucket = request.getfixturevalue("bucket")
        return World(pipeline)

    return make


def counters(pipeline: Pipeline) -> dict[str, Any]:
    """The day's and the catalogue's counters."""
    with pipeline.open() as workspace:
        return {scope: held for scope, held in workspace.ledger.counters().items() if not scope.startswith("run:")}


def adopt(pipeline: Pipeline) -> None:
    """What `nanobanana repair --adopt` does."""
    with pipeline.open() as workspace:
        adopt_tables(workspace)
        mend_tables(workspace)


def assert_refused_and_untouched(pipeline: Pipeline) -> None:
    """Every way to begin work refuses in one line, sends nothing, and leaves the tables as the only evidence."""
    before, sent = pipeline.table("attempts"), len(pipeline.accepted())
    with pytest.raises(UserError, match="repair --adopt"):
        pipeline.run()
    with pipeline.open() as workspace, pytest.raises(UserError, match="repair --adopt"):
        mend_tables(workspace, everything=True)
    with pipeline.open() as workspace:
        for work in workspace.ledger.shard_work():
            with pytest.raises(UserError, match="repair --adopt"):
                generate_shard(workspace, work.shard, lambda: pipeline.provider(workspace), pipeline.options())
    assert pipeline.table("attempts") == before
    assert len(pipeline.accepted()) == sent


def test_a_lost_ledger_is_noticed_and_made_again_from_the_tables(world: Callable[..., World]) -> None:
    """Deleted by a hand that tidied up: every image would have been paid for again, without a word."""
    here = world()
    pipeline = here.pipeline
    pipeline.write(ROWS)
    pipeline.run()
    results, images, held = pipeline.results(), pipeline.table("images"), counters(pipeline)
    here.lose_ledger()
    assert_refused_and_untouched(pipeline)
    adopt(pipeline)
    assert counters(pipeline) == held
    pipeline.run()
    assert pipeline.results() == results
    assert sorted(pipeline.table("images"), key=str) == sorted(images, key=str)
    assert len(pipeline.accepted()) == len(ROWS)
    pipeline.assert_books_agree()


def test_an_older_copy_is_noticed_and_brought_up_to_date(world: Callable[..., World]) -> None:
    """Last night's backup knows half of the images, and of the other half nothing."""
    here = world(knobs={"shard_size": 2})
    pipeline = here.pipeline
    pipeline.write(ROWS)
    pipeline.run(limit=1)
    here.back_up()
    pipeline.write([*ROWS, {"prompt_id": "late", "prompt": "came later", "samples": 2}])
    pipeline.run()
    pipeline.run(rerun=Rerun.REGENERATE, limit=1)
    results, held = pipeline.results(), counters(pipeline)
    here.restore()
    assert_refused_and_untouched(pipeline)
    adopt(pipeline)
    assert counters(pipeline) == held
    sent = len(pipeline.accepted())
    pipeline.run()
    assert pipeline.results() == results
    assert len(pipeline.accepted()) == sent
    pipeline.assert_books_agree()


def test_open_attempts_of_a_lost_ledger_are_asked_about_and_not_sent_again(pipelines: Callable[..., Pipeline]) -> None:
    """Tasks on their way, an image not yet fetched, an answer that was lost: all are paid for, or may be."""
    pipeline = pipelines(knobs={"task_deadline_s": 1})
    faults = {"slow": "slow_task", "lost": "answer_lost", "host": "image_500_then_good", "bad": "failed"}
    params: dict[str, dict[str, Any]] = {"slow": {"seconds": 600}, "host": {"failures": 6}}
    pipeline.simulator.set_faults(
        [{"prompt": name, "fault": fault, **params.get(name, {})} for name, fault in faults.items()]
    )
    pipeline.write([{"prompt_id": name, "prompt": name} for name in faults])
    pipeline.run()
    states = {name: pipeline.attempts(name)[-1]["state"] for name in faults}
    assert states == {"slow": "overdue", "lost": "unknown", "host": "completed", "bad": "failed"}
    results, held = pipeline.results(), counters(pipeline)
    World(pipeline).lose_ledger()
    adopt(pipeline)
    assert counters(pipeline) == held
    assert {key: row["status"] for key, row in pipeline.results().items()} == {
        key: row["status"] for key, row in results.items()
    }
    sent = len(pipeline.accepted())
    pipeline.simulator.advance(600)
    pipeline.run()
    now = {name: row["status"] for (name, _), row in pipeline.results().items()}
    assert now == {"slow": "succeeded", "lost": "unknown", "host": "succeeded", "bad": "failed"}
    assert len(pipeline.accepted()) == sent
    pipeline.assert_books_agree()


def test_a_paid_image_of_a_lost_ledger_whose_task_is_forgotten_is_given_up_in_the_end(
    world: Callable[..., World],
) -> None:
    """Neither the tables nor the provider know its addresses: it was work left for ever, and no run could do any."""
    here = world()
    pipeline = here.pipeline
    pipeline.simulator.set_faults([{"fault": "fast_path"}, {"fault": "image_500_then_good", "failures": 5000}])
    pipeline.write(ROWS[:1])
    pipeline.run()
    here.lose_ledger()
    adopt(pipeline)
    # Completed days ago, and yet tried for the first time: the provider may only be slow to remember.
    pipeline.let_pass(hours=72)
    held = counters(pipeline)
    pipeline.simulator.set_faults([{"fault": "forgotten_404"}])
    for hours in (0, 6, 6, 6, 5):
        pipeline.let_pass(hours)
        pipeline.run()
        (attempt,) = pipeline.attempts("p0")
        assert attempt["state"] == "completed"
        assert "the provider does not know the task" in attempt["error_message"]
    pipeline.let_pass(hours=2)
    pipeline.run()
    (row,) = pipeline.results().values()
    (attempt,) = pipeline.attempts("p0")
    assert (row["status"], attempt["state"], attempt["error_kind"]) == ("failed", "unusable", "bad_output")
    assert row["cost_usd"] == attempt["cost_usd"] > 0
    assert "not in the tables" in row["error_message"]
    assert "the provider does not know the task" in row["error_message"]
    assert counters(pipeline) == held
    with pipeline.open() as workspace:
        assert [work.left for work in workspace.ledger.shard_work()] == [0]
    assert len(pipeline.accepted()) == 1
    pipeline.assert_books_agree()


def test_a_paid_image_of_a_lost_ledger_survives_a_lost_question(pipeline: Pipeline) -> None:
    """However long it was tried in vain: one answer that does not come says nothing of the image."""
    pipeline.simulator.set_faults([{"fault": "fast_path"}, {"fault": "image_500_then_good", "failures": 5000}])
    pipeline.write(ROWS[:1])
    pipeline.run()
    World(pipeline).lose_ledger()
    adopt(pipeline)
    pipeline.simulator.set_faults([{"fault": "poll_500"}])
    pipeline.run()
    assert "could not be asked for: HTTP 500" in pipeline.attempts("p0")[0]["error_message"]
    pipeline.let_pass(hours=72)
    pipeline.simulator.set_faults([{"fault": "poll_500", "times": 2}])
    pipeline.run()
    (row,) = pipeline.results().values()
    assert (row["status"], row["error_message"]) == ("succeeded", None)
    assert len(pipeline.accepted()) == 1
    pipeline.assert_books_agree()


def test_an_edited_item_of_a_lost_ledger_keeps_its_costs_and_its_request(pipeline: Pipeline) -> None:
    """The tables do not hold the request before the edit; no stand-in for it may ever be sent."""
    pipeline.write(ROWS[:1])
    pipeline.run()
    pipeline.write([{**ROWS[0], "prompt": "edited"}])
    pipeline.run()
    held = counters(pipeline)
    World(pipeline).lose_ledger()
    adopt(pipeline)
    assert counters(pipeline) == held
    pipeline.write(ROWS[:1])
    pipeline.run()
    # The files of the first request are forgotten: it is made again, as it was asked for.
    assert pipeline.accepted() == [ROWS[0]["prompt"], "edited", ROWS[0]["prompt"]]
    pipeline.assert_books_agree()


def test_nothing_is_adopted_beside_a_run(pipeline: Pipeline) -> None:
    """What a run has in the air is in no table yet: two would write one book, each from another view."""
    pipeline.write(ROWS)
    pipeline.run(limit=1)
    with pipeline.open() as workspace:
        lease = workspace.ledger.lease("cat-000000", "elsewhere")
        lease.acquire()
        with pytest.raises(UserError, match=r"a run is at work on shard cat-000000.*stop it or wait"):
            adopt_tables(workspace)
        lease.release()
        assert adopt_tables(workspace).attempts == 0


def test_adopting_waits_for_a_registration(world: Callable[..., World]) -> None:
    """Both give out the catalogue's places, and the one enters as new what the other has entered meanwhile."""
    here = world()
    pipeline = here.pipeline
    pipeline.write(ROWS)
    pipeline.run()
    results, sent = pipeline.results(), len(pipeline.accepted())
    here.lose_ledger()
    with pipeline.open() as workspace:
        adopting = threading.Thread(target=adopt_tables, args=(workspace,))

        def rows() -> Iterator[Sequence[CataloguePrompt]]:
            adopting.start()
            adopting.join(0.5)
            assert adopting.is_alive()
            yield [prompt(row["prompt_id"], row["prompt"]) for row in ROWS]

        workspace.ledger.register(
            "cat", rows(), default_resolution=SPEC.default_resolution, shard_size=1000, complete=lambda: True
        )
        adopting.join(120)
        mend_tables(workspace)
    pipeline.run()
    assert pipeline.results() == results
    assert len(pipeline.accepted()) == sent
    pipeline.assert_books_agree()
