"""A ledger that was lost, or set back to an older copy: noticed before anything is paid again, and made good."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.adoption import adopt_tables
from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.shard_run import generate_shard
from nanobanana_pipeline.ledger.work import Rerun
from nanobanana_pipeline_tests.generation.pipelines import Pipeline

ROWS: list[dict[str, Any]] = [{"prompt_id": f"p{n}", "prompt": f"a picture of {n}", "samples": 1} for n in range(4)]


def ledger_of(pipeline: Pipeline) -> Path:
    """The ledger's file."""
    return pipeline.folder / "output" / "ledger.sqlite"


def lose_ledger(pipeline: Pipeline) -> None:
    """Delete it, with what SQLite keeps beside it."""
    for file in ledger_of(pipeline).parent.glob("ledger.sqlite*"):
        file.unlink()


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


def test_a_lost_ledger_is_noticed_and_made_again_from_the_tables(pipeline: Pipeline) -> None:
    """Deleted by a hand that tidied up: every image would have been paid for again, without a word."""
    pipeline.write(ROWS)
    pipeline.run()
    results, images, held = pipeline.results(), pipeline.table("images"), counters(pipeline)
    lose_ledger(pipeline)
    assert_refused_and_untouched(pipeline)
    adopt(pipeline)
    assert counters(pipeline) == held
    pipeline.run()
    assert pipeline.results() == results
    assert sorted(pipeline.table("images"), key=str) == sorted(images, key=str)
    assert len(pipeline.accepted()) == len(ROWS)
    pipeline.assert_books_agree()


def test_an_older_copy_is_noticed_and_brought_up_to_date(pipelines: Callable[..., Pipeline]) -> None:
    """Last night's backup knows half of the images, and of the other half nothing."""
    pipeline = pipelines(knobs={"shard_size": 2})
    pipeline.write(ROWS)
    pipeline.run(limit=1)
    backup = pipeline.folder / "backup.sqlite"
    shutil.copy(ledger_of(pipeline), backup)
    pipeline.write([*ROWS, {"prompt_id": "late", "prompt": "came later", "samples": 2}])
    pipeline.run()
    pipeline.run(rerun=Rerun.REGENERATE, limit=1)
    results, held = pipeline.results(), counters(pipeline)
    lose_ledger(pipeline)
    shutil.copy(backup, ledger_of(pipeline))
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
    lose_ledger(pipeline)
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


def test_an_edited_item_of_a_lost_ledger_keeps_its_costs_and_its_request(pipeline: Pipeline) -> None:
    """The tables do not hold the request before the edit; no stand-in for it may ever be sent."""
    pipeline.write(ROWS[:1])
    pipeline.run()
    pipeline.write([{**ROWS[0], "prompt": "edited"}])
    pipeline.run()
    held = counters(pipeline)
    lose_ledger(pipeline)
    adopt(pipeline)
    assert counters(pipeline) == held
    pipeline.write(ROWS[:1])
    pipeline.run()
    # The files of the first request are forgotten: it is made again, as it was asked for.
    assert pipeline.accepted() == [ROWS[0]["prompt"], "edited", ROWS[0]["prompt"]]
    pipeline.assert_books_agree()
