"""The catalogue through Dagster: what is good, what is not, and which shards there are to choose from."""

from typing import Any

import dagster as dg

from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.jobs import refresh_config
from nanobanana_pipeline_tests.orchestration.conftest import Orchestra, rows


def told(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The metadata of an asset's materialisation."""
    (event,) = [event for event in result.get_asset_materialization_events() if event.asset_key == dg.AssetKey([asset])]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def verdict(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    """The one check of a refresh."""
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_good_rows_become_shards_and_bad_ones_are_told_why(orchestra: Orchestra) -> None:
    """One bad row must neither end the run nor vanish."""
    orchestra.pipeline.write([*rows(3), {"prompt_id": "bad", "prompt": "a fox", "resolution": "8K"}])
    result = orchestra.refresh()
    assert told(result, "prompts")["dagster/row_count"] == 3
    assert told(result, "prompts")["new_shards"] == 1
    assert told(result, "prompts")["images_to_make"] == 3
    assert 0.05 < told(result, "prompts")["plan_cost_usd"] < 0.3
    assert "3 images to make" in told(result, "prompts")["plan"]
    assert told(result, "prompts")["mode"] == "simulated"
    assert told(result, "rejected_prompts")["dagster/row_count"] == 1
    assert orchestra.instance.get_dynamic_partitions("shards") == ["cat-000000"]
    assert not verdict(result).passed
    assert verdict(result).severity is dg.AssetCheckSeverity.WARN
    assert "8K" in str(verdict(result).metadata["rows"].value)


def test_the_verdict_stands_while_the_files_do(orchestra: Orchestra) -> None:
    """Unchanged files aren't read again; their rejected rows are still there, and must not look mended."""
    orchestra.pipeline.write([*rows(1), {"prompt_id": "bad", "prompt": ""}])
    orchestra.refresh()
    again = orchestra.refresh()
    assert not verdict(again).passed
    assert "not read again" in told(again, "prompts")["catalogues"]
    orchestra.pipeline.write(rows(1))
    assert verdict(orchestra.refresh()).passed


def test_the_same_files_are_the_same_version(orchestra: Orchestra) -> None:
    """The sensor may read them again at any time: that must not mark every shard as out of date."""

    def version(result: dg.ExecuteInProcessResult) -> str | None:
        event = result.get_asset_materialization_events()[0]
        return (event.materialization.tags or {}).get("dagster/data_version")

    orchestra.pipeline.write(rows(1))
    first = version(orchestra.refresh())
    assert first
    assert version(orchestra.refresh()) == first
    orchestra.pipeline.write(rows(2))
    assert version(orchestra.refresh()) != first


def test_a_catalogue_that_is_gone_keeps_its_shards(orchestra: Orchestra) -> None:
    """Its images stay, and so do the runs that made them: a deleted partition would hide both."""
    path = orchestra.pipeline.write(rows(1))
    orchestra.pipeline.write(rows(2), "other")
    orchestra.refresh()
    path.unlink()
    result = orchestra.refresh()
    assert "its files are gone" in told(result, "prompts")["catalogues"]
    assert sorted(orchestra.instance.get_dynamic_partitions("shards")) == ["cat-000000", "other-000000"]


def test_one_catalogue_can_be_read_alone(orchestra: Orchestra) -> None:
    """Who edits one of fifty need not wait for all."""
    orchestra.pipeline.write(rows(1))
    orchestra.pipeline.write(rows(1), "other")
    result = orchestra.execute("refresh_catalogue", run_config=refresh_config(["other"]))
    assert result.success
    assert orchestra.instance.get_dynamic_partitions("shards") == ["other-000000"]


def test_a_missing_folder_is_one_line(orchestra: Orchestra) -> None:
    """The commonest mistake of the first minute."""
    result = orchestra.execute("refresh_catalogue")
    assert not result.success
    data = next(event.step_failure_data for event in result.all_events if event.is_step_failure)
    assert data.user_failure_data is not None
    assert "NANOBANANA_CATALOGUE" in str(data.user_failure_data.description)


def test_observing_tells_whether_files_have_changed(orchestra: Orchestra) -> None:
    """Dagster marks what is derived from a changed catalogue as stale, before anything is read."""

    def version() -> str | None:
        """The data version that an observation finds."""
        job = build_defs().resolve_implicit_global_asset_job_def()
        key = dg.AssetKey("prompt_catalogue")
        assert job.execute_in_process(instance=orchestra.instance, asset_selection=[key]).success
        observation = orchestra.instance.fetch_observations(key, limit=1).records[0].asset_observation
        assert observation is not None
        return observation.data_version

    orchestra.pipeline.write(rows(1))
    first = version()
    assert version() == first
    orchestra.pipeline.write(rows(2))
    assert version() != first
