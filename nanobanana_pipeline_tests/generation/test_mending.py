"""What a crash leaves behind is found and made good from the ledger, at no cost."""

import shutil
import threading
from pathlib import Path

import pytest

from nanobanana_pipeline.generation import mending, rest
from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.mending import mend_tables, repair_tables
from nanobanana_pipeline.generation.staleness import stale_shards
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline.storage import delta_log
from nanobanana_pipeline_tests.generation.pipelines import Pipeline


def test_a_shard_that_was_entered_and_never_written_is_found(pipeline: Pipeline) -> None:
    """A run killed between its last entry and its tables has nothing left to do: no later run would write them."""
    pipeline.write([{"prompt_id": f"p{n}", "prompt": f"a picture of {n}"} for n in range(3)])
    pipeline.run()
    with pipeline.open() as workspace:
        assert stale_shards(workspace) == []
        whole = pipeline.results()
        for name in ("results", "attempts"):
            workspace.tables.replace(
                name, workspace.tables.read(name).slice(0, 1), None, expected_version=workspace.tables.version(name)
            )
        mended = mend_tables(workspace)
        assert len(mended.shards) == 1
        assert pipeline.results() == whole
        assert mend_tables(workspace).shards == []


def test_a_missing_table_is_made_again(pipeline: Pipeline) -> None:
    """Tables are derived, so losing one costs nothing."""
    pipeline.write([{"prompt_id": "p", "prompt": "a picture"}])
    pipeline.run()
    with pipeline.open() as workspace:
        (image,) = pipeline.table("images")
        shutil.rmtree(Path(workspace.tables.uri("images")))
        mend_tables(workspace)
        assert pipeline.table("images") == [image]


@pytest.mark.parametrize("written_since", [False, True])
def test_a_table_that_a_killed_repair_left_without_rows_is_made_again(
    pipeline: Pipeline, *, written_since: bool
) -> None:
    """Killed after it took a torn commit away, a repair left `images` whole to look at, and a shard's rows missing."""
    pipeline.write([{"prompt_id": "p", "prompt": "a picture"}])
    pipeline.run()
    (image,) = pipeline.table("images")
    with pipeline.open() as workspace:
        delta_log.entry(workspace.tables.uri("images"), workspace.tables.ensure("images")).write_bytes(b"")
        repair_tables(workspace)
        if written_since:
            workspace.tables.ensure("images")
        assert pipeline.table("images") == []
        assert stale_shards(workspace) == []
        assert mend_tables(workspace).shards
        assert pipeline.table("images") == [image]
        assert mend_tables(workspace).shards == []


def test_two_first_repairs_at_once_note_what_each_has_taken_away(ledger_url: str, tmp_path: Path) -> None:
    """Without a row there was nothing to hold: on PostgreSQL one note took the other's place, and that table's rows."""
    with Workspace.open(
        load_settings(api_key="k", output=str(tmp_path / "output"), ledger_url=ledger_url)
    ) as workspace:
        other = threading.Thread(target=mending._note_to_rebuild, args=(workspace, lambda names: names | {"prompts"}))

        def beside_the_other(names: frozenset[str]) -> frozenset[str]:
            other.start()
            other.join(0.5)
            return names | {"images"}

        mending._note_to_rebuild(workspace, beside_the_other)
        other.join(120)
        assert mending._to_rebuild(workspace) == {"images", "prompts"}


def test_a_removed_catalogue_whose_tables_were_never_written_is_written(pipeline: Pipeline) -> None:
    """A process killed right after marking its items left `prompts` showing them as active for good."""
    path = pipeline.write([{"prompt_id": "p", "prompt": "a picture"}])
    pipeline.refresh()
    path.unlink()
    with pipeline.open() as workspace:
        workspace.ledger.deactivate_missing([])
    assert [row["active"] for row in pipeline.table("prompts")] == [True]
    pipeline.refresh()
    assert [row["active"] for row in pipeline.table("prompts")] == [False]
    with pipeline.open() as workspace:
        version = workspace.tables.version("prompts")
        refresh(workspace)
        assert workspace.tables.version("prompts") == version


def test_a_torn_table_keeps_no_run_from_mending_it(pipeline: Pipeline) -> None:
    """A run looks whether anything has changed before it mends, and ended there, pointing to `nanobanana repair`."""
    pipeline.write([{"prompt_id": "p", "prompt": "a picture"}])
    pipeline.run()
    with pipeline.open() as workspace:
        whole = pipeline.results()
        delta_log.entry(workspace.tables.uri("results"), workspace.tables.ensure("results")).write_bytes(b"")
        assert rest.found_at(workspace, rest.look(workspace)) is None
        mend_tables(workspace)
        assert pipeline.results() == whole
