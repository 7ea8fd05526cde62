"""What was found when nothing was left to do holds for as long as nothing changed, and not a moment longer."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nanobanana_pipeline.generation import rest
from nanobanana_pipeline.generation.publishing import publish_prompts
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline_tests.generation.pipelines import Pipeline

FOUND = {"images": 1}


def _correct_a_cost(pipeline: Pipeline, workspace: Workspace) -> None:
    (attempt,) = pipeline.attempts("p")
    with workspace.ledger.posting() as postings:
        assert postings.correct(attempt["attempt_id"], 1, "invoice") is not None


def _edit_the_catalogue(pipeline: Pipeline, _: Workspace) -> None:
    pipeline.write([{"prompt_id": "p", "prompt": "another picture"}])
    pipeline.refresh()


def _lose_a_table(_: Pipeline, workspace: Workspace) -> None:
    shutil.rmtree(Path(workspace.tables.uri("images")))


def _put_an_older_table_back(pipeline: Pipeline, workspace: Workspace) -> None:
    table = Path(workspace.tables.uri("prompts"))
    kept = table.with_name("kept")
    shutil.copytree(table, kept)
    publish_prompts(workspace, "cat")
    rest.note(workspace, rest.look(workspace), FOUND)
    shutil.rmtree(table)
    kept.rename(table)


@pytest.mark.parametrize("change", [_correct_a_cost, _edit_the_catalogue, _lose_a_table, _put_an_older_table_back])
def test_any_change_is_a_reason_to_look_again(
    pipeline: Pipeline, change: Callable[[Pipeline, Workspace], None]
) -> None:
    """Whatever the tables or the reports could be wrong about afterwards must not be taken for seen."""
    pipeline.write([{"prompt_id": "p", "prompt": "a picture"}])
    pipeline.run()
    with pipeline.open() as workspace:
        mark = rest.look(workspace)
        assert rest.found_at(workspace, mark) is None
        rest.note(workspace, mark, FOUND)
        assert rest.found_at(workspace, rest.look(workspace)) == FOUND
        change(pipeline, workspace)
        assert rest.found_at(workspace, rest.look(workspace)) is None


def test_yesterday_is_looked_at_again(pipeline: Pipeline) -> None:
    """Reports speak of today."""
    pipeline.write([{"prompt_id": "p", "prompt": "a picture"}])
    pipeline.refresh()
    with pipeline.open() as workspace:
        mark = rest.look(workspace)
        rest.note(workspace, replace(mark, day="2026-01-01"), FOUND)
        assert rest.found_at(workspace, mark) is None
