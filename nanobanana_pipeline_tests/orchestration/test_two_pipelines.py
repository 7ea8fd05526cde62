"""Two pipelines in one Dagster instance: neither may see, start or spend anything of the other's."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.jobs import generation_config
from nanobanana_pipeline.settings import DEMO_OUTPUT, load_settings
from nanobanana_pipeline_tests.orchestration.conftest import Orchestra, rows

SHARD = "cat-000000"


def test_a_named_pipeline_has_its_own_variables_and_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is common is said once; what each works in is never shared."""
    monkeypatch.setenv("NANOBANANA_API_KEY", "key-of-all")
    monkeypatch.setenv("NANOBANANA_BUDGET_USD", "5")
    monkeypatch.setenv("NANOBANANA_AUTUMN_BUDGET_USD", "7")
    monkeypatch.setenv("NANOBANANA_OUTPUT", "out")
    monkeypatch.setenv("NANOBANANA_LEDGER_URL", "sqlite:////somewhere/ledger.sqlite")
    first, autumn = load_settings(), load_settings(pipeline="autumn")
    assert (first.budget_usd, autumn.budget_usd) == (5, 7)
    assert autumn.api_key == first.api_key
    assert (first.workspace, autumn.workspace) == ("out", "out/pipelines/autumn")
    assert autumn.ledger != first.ledger
    monkeypatch.setenv("NANOBANANA_PIPELINE", "autumn")
    assert load_settings() == autumn


def test_without_a_key_it_has_its_own_demo() -> None:
    """Else the second pipeline's first try would be found in the first one's books."""
    assert load_settings(pipeline="autumn").workspace == f"{DEMO_OUTPUT}/pipelines/autumn"


def test_a_remote_output_needs_its_own_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pipeline's is not taken silently: both would work on each other's items."""
    monkeypatch.setenv("NANOBANANA_API_KEY", "key")
    monkeypatch.setenv("NANOBANANA_OUTPUT", "s3://bucket/output")
    monkeypatch.setenv("NANOBANANA_LEDGER_URL", "postgresql://host/ledger")
    with pytest.raises(UserError, match="NANOBANANA_AUTUMN_LEDGER_URL"):
        _ = load_settings(pipeline="autumn").ledger


@pytest.mark.parametrize("variable", ["NANOBANANA_AUTUMN_MAX_IN_FLIGHT", "NANOBANANA_PIPELINE"])
def test_a_wrong_setting_is_named_as_it_was_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message about a variable that nobody has set sends people the wrong way."""
    monkeypatch.setenv("NANOBANANA_PIPELINE", "autumn")
    monkeypatch.setenv(variable, "Not Right")
    with pytest.raises(UserError, match=f"{variable}:"):
        load_settings()


def test_its_key_is_handed_on_by_its_own_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another account's key; and Dagster's pages show names of variables, never what they hold."""
    monkeypatch.setenv("NANOBANANA_API_KEY", "key-of-the-first")
    monkeypatch.setenv("NANOBANANA_AUTUMN_API_KEY", "key-of-autumn")
    defs = build_defs(name="autumn")
    assert defs.resources is not None
    assert defs.resources["nano_banana"].api_key == dg.EnvVar("NANOBANANA_AUTUMN_API_KEY")


def test_names_that_dagster_keeps_for_all_locations_differ() -> None:
    """Equal asset keys would mix two histories, an equal set of partitions two catalogues' shards."""
    first, autumn = build_defs(), build_defs(name="autumn")
    keys = {spec.key for spec in first.resolve_all_asset_specs()}
    assert {spec.key for spec in autumn.resolve_all_asset_specs()} == {key.with_prefix("autumn") for key in keys}
    images = autumn.resolve_assets_def(dg.AssetKey(["autumn", "images"]))
    assert isinstance(images.partitions_def, dg.DynamicPartitionsDefinition)
    assert images.partitions_def.name == "autumn_shards"
    assert images.op.pool == "nanobanana_api_autumn"
    assert {sensor.name for sensor in autumn.sensors or ()} == {sensor.name for sensor in first.sensors or ()}


@pytest.fixture
def autumn(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> Orchestra:
    """The instance with both pipelines, whose catalogues have the same name and other rows."""
    folder = orchestra.pipeline.folder / "autumn"
    monkeypatch.setenv("NANOBANANA_AUTUMN_CATALOGUE", str(folder / "catalogue"))
    orchestra.pipeline.write(rows(2))
    (folder / "catalogue").mkdir(parents=True)
    written = orchestra.pipeline.write([{"prompt": "autumn leaves", "resolution": "0.5K"}], "autumn-leaves")
    written.rename(folder / "catalogue" / "cat.parquet")
    return orchestra


def execute(orchestra: Orchestra, job: str, **arguments: Any) -> dg.ExecuteInProcessResult:
    """Run a job of `autumn`."""
    result = build_defs(name="autumn").resolve_job_def(job).execute_in_process(instance=orchestra.instance, **arguments)
    assert result.success
    return result


def tick(orchestra: Orchestra, sensor: str, name: str | None = None) -> Any:
    """What a sensor of a pipeline says."""
    defs = build_defs(name=name)
    definition = defs.resolve_sensor_def(sensor)
    needed = {key: (defs.resources or {})[key] for key in definition.required_resource_keys}
    with dg.build_sensor_context(instance=orchestra.instance, resources=needed) as context:
        return definition(context)


def started(answer: Any) -> list[str | None]:
    """The shards that it starts."""
    return [] if isinstance(answer, dg.SkipReason) else [request.partition_key for request in answer.run_requests]


def test_both_work_beside_each_other(autumn: Orchestra) -> None:
    """Shards of the same name, one instance: each sensor starts its own, and one's end is not the other's."""
    autumn.refresh()
    execute(autumn, "refresh_catalogue")
    assert autumn.instance.get_dynamic_partitions("shards") == [SHARD]
    assert autumn.instance.get_dynamic_partitions("autumn_shards") == [SHARD]
    assert started(tick(autumn, "generation_sensor")) == [SHARD]
    # Queued, and yet no run of it is under way for the other.
    job = build_defs().resolve_job_def("generate_images")
    autumn.instance.create_run_for_job(job, tags={**job.run_tags, "dagster/partition": SHARD})
    assert started(tick(autumn, "generation_sensor")) == []
    assert started(tick(autumn, "generation_sensor", "autumn")) == [SHARD]

    execute(autumn, "generate_images", partition_key=SHARD, run_config=generation_config())
    assert autumn.pipeline.accepted() == ["autumn leaves"]
    assert started(tick(autumn, "generation_sensor", "autumn")) == []
    assert len(tick(autumn, "report_sensor", "autumn").run_requests) == 1
    assert isinstance(tick(autumn, "report_sensor"), dg.SkipReason)
    execute(autumn, "report_costs")

    output = Path(autumn.pipeline.settings.output)
    assert (output / "pipelines" / "autumn" / "site" / "gallery.html").exists()
    assert not (output / "site").exists()
    assert autumn.instance.get_latest_materialization_event(dg.AssetKey(["autumn", "images"])) is not None
    assert autumn.instance.get_latest_materialization_event(dg.AssetKey("images")) is None
    for check in ("files_exist", "costs_agree", "few_errors"):
        asset = {"files_exist": "images", "costs_agree": "attempts", "few_errors": "results"}[check]
        key = dg.AssetCheckKey(dg.AssetKey(["autumn", asset]), check)
        record = autumn.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        assert record.status.value == "SUCCEEDED"
