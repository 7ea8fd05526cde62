"""What Dagster loads: complete, described, quickly there, and without touching anything."""

import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration import development
from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.storage.schemas import SCHEMAS

ROOT = Path(__file__).parents[2]

LOAD = """
import time
from nanobanana_pipeline.definitions import defs
defs.resolve_all_job_defs()
print(time.process_time())
"""

ASSETS = {
    "prompt_catalogue": "catalogue",
    "prompts": "catalogue",
    "rejected_prompts": "catalogue",
    "images": "generation",
    "results": "generation",
    "attempts": "generation",
    "cost_daily": "reporting",
    "reconciliation": "reporting",
    "cost_report": "reporting",
    "gallery": "reporting",
}


def specs(defs: dg.Definitions) -> dict[str, dg.AssetSpec]:
    """Every asset by name."""
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_loading_needs_no_key_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Dagster loads definitions in several processes at each start, and on pages that only show them."""
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert float(done.stdout) < 15.0, "CPU seconds to load"
    assert list(tmp_path.iterdir()) == []


def test_the_names_are_the_public_ones() -> None:
    """Dashboards and scripts hang on them."""
    defs = build_defs()
    assert {name: spec.group_name for name, spec in specs(defs).items()} == ASSETS
    assert {job.name for job in defs.resolve_all_job_defs()} - {"__ASSET_JOB"} == {
        "refresh_catalogue",
        "generate_images",
        "report_costs",
        "maintain_tables",
    }
    assert [sensor.name for sensor in defs.sensors or ()] == [
        "catalogue_sensor",
        "generation_sensor",
        "report_sensor",
        "alert_sensor",
    ]
    assert {schedule.name for schedule in defs.schedules or ()} == {
        "nightly_generation",
        "daily_cost_report",
        "nightly_maintenance",
    }


def test_only_what_spends_nothing_is_on_by_itself() -> None:
    """Nobody must find a bill for something that they never turned on."""
    defs = build_defs()
    on = {sensor.name for sensor in defs.sensors or () if sensor.default_status is dg.DefaultSensorStatus.RUNNING}
    assert on == {"catalogue_sensor", "report_sensor", "alert_sensor"}
    for schedule in defs.schedules or ():
        assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_only_what_is_free_goes_stale_or_is_made_by_itself() -> None:
    """A red mark urges to click, and a condition clicks by itself: neither may lead to a bill."""
    for name, spec in specs(build_defs()).items():
        free = "Free" in str(spec.description)
        assert free or (spec.freshness_policy is None and spec.automation_condition is None), name
    assert specs(build_defs())["cost_report"].freshness_policy is not None


def test_everything_says_what_it_is_and_what_it_costs() -> None:
    """People live in these pages, and don't read code."""
    defs = build_defs()
    for name, spec in specs(defs).items():
        assert spec.description, name
        assert spec.owners, name
        assert spec.kinds, name
        assert "Free" in spec.description or "Costs money" in spec.description, name
        if name in SCHEMAS:
            columns = spec.metadata["dagster/column_schema"].columns
            assert [column.name for column in columns] == SCHEMAS[name].names
            assert all(column.description for column in columns), name
    for thing in (*(defs.sensors or ()), *(defs.schedules or ()), *defs.resolve_all_job_defs()):
        if thing.name != "__ASSET_JOB":
            assert thing.description, thing
    assert "an empty workspace has none yet" in (specs(defs)["images"].description or "")


def test_generation_is_one_step_with_one_run_a_shard_in_its_pool() -> None:
    """One run for many shards would put one cost on all of them, and shards may overlap only as the pool lets."""
    generation = build_defs().resolve_assets_def("images")
    assert not generation.can_subset
    assert generation.op.pool == "nanobanana_api"
    assert generation.backfill_policy is None


def test_steps_run_in_the_runs_own_process() -> None:
    """A process for each step costs seconds, also in runs that the Materialize button starts."""
    job = build_defs().resolve_implicit_global_asset_job_def()
    assert job.executor_def.name == "in_process"


def test_a_part_can_be_swapped(tmp_path: Path) -> None:
    """Two pipelines in one workspace, and tests, are made by giving other parts."""
    resource = NanoBananaResource(output=str(tmp_path))
    defs = build_defs(
        resources={"nano_banana": resource, "other": "thing"}, sensors=[], executor=dg.multiprocess_executor
    )
    assert defs.resources == {"nano_banana": resource, "other": "thing"}
    assert list(defs.sensors or ()) == []
    assert build_defs() is not build_defs()


def test_every_way_to_start_dagster_calls_the_location_the_same() -> None:
    """By its name Dagster keeps which sensors a person turned on: another name, and they would be off again."""
    by_hand = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    assert yaml.safe_load(development._WORKSPACE) == by_hand
    (location,) = (entry["python_module"] for entry in by_hand["load_from"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dagster"]
    assert project == {"module_name": location["module_name"], "code_location_name": location["location_name"]}
    beside = yaml.safe_load((ROOT / "deploy" / "two_pipelines" / "workspace.yaml").read_text())
    assert beside["load_from"][0] == by_hand["load_from"][0]


def test_a_wrong_setting_is_named_when_dagster_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the middle of the first run."""
    monkeypatch.setenv("NANOBANANA_MAX_IN_FLIGHT", "many")
    with pytest.raises(UserError, match="NANOBANANA_MAX_IN_FLIGHT"):
        build_defs()
