"""The pipeline through Dagster's own pages: what a person clicks, sent to a real `dagster dev` as its pages send it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.e2e.dagster_dev import DagsterDev
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.receivers import Receiver, web_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

GENERATION = ("images", "results", "attempts")

LIMIT_S = 240
"""Many times what anything takes: ten runs at once on two busy cores are no failure."""

HALF = "read when they are whole: larks"

_ASSET = """
query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  description groupName kinds
  assetMaterializations(limit: 1) { partition runId metadataEntries {
    label
    ... on TextMetadataEntry { text }
    ... on MarkdownMetadataEntry { mdStr }
    ... on FloatMetadataEntry { floatValue }
    ... on IntMetadataEntry { intRepr }
    ... on PathMetadataEntry { path }
  } }
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization {
    status evaluation { success severity }
  } } } }
} } }"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline of two catalogues and its simulator, for all tests of this module."""
    folder = tmp_path_factory.mktemp("pipeline")
    with SimulatorProcess(latency=0.05, book=folder / "book.jsonl") as simulator:
        pipeline = Pipeline(folder, simulator)
        for name in ("foxes", "owls"):
            rows = [
                {"prompt_id": f"{name}{n}", "prompt": f"{name}, number {n}", "resolution": "0.5K"} for n in range(4)
            ]
            pipeline.write(rows, name)
        yield pipeline


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Where its alerts go."""
    with web_server() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def dagster(pipeline: Pipeline, receiver: Receiver) -> Iterator[DagsterDev]:
    """Dagster with that pipeline, as its environment says."""
    settings = pipeline.settings
    environment = {
        "NANOBANANA_API_KEY": pipeline.simulator.api_key,
        "NANOBANANA_BASE_URL": pipeline.simulator.base_url,
        "NANOBANANA_OUTPUT": settings.output,
        "NANOBANANA_CATALOGUE": settings.catalogue,
        "NANOBANANA_BUDGET_USD": "2",
        "NANOBANANA_ALERT_WEBHOOK": receiver.url,
    }
    quick = "nanobanana_pipeline_tests.e2e.quick_sensors"
    with DagsterDev(pipeline.folder / "dagster", environment, module=quick) as dagster:
        run = dagster.materialize(["prompts", "rejected_prompts"])
        assert dagster.wait_for_end(run, LIMIT_S) == "SUCCESS", dagster.log[-5000:]
        yield dagster


def asset(dagster: DagsterDev, name: str) -> dict[str, Any]:
    """What the asset's page shows."""
    return dagster.query(_ASSET, key={"path": [name]})["assetNodeOrError"]


def values(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Metadata by label."""
    return {entry["label"]: next((v for k, v in entry.items() if k != "label"), None) for entry in entries}


def test_a_shard_is_made_seen_and_checked(dagster: DagsterDev, pipeline: Pipeline) -> None:
    """What an analyst does on the first day: choose a shard, materialise it, look at what came of it."""
    run = dagster.materialize(GENERATION, partition="foxes-000000")
    assert dagster.wait_for_end(run, LIMIT_S) == "SUCCESS", dagster.log[-5000:]
    for name in GENERATION:
        (made,) = asset(dagster, name)["assetMaterializations"]
        assert made["partition"] == "foxes-000000"
        assert made["runId"] == run
        shown = values(made["metadataEntries"])
        assert shown["mode"] == "simulated"
        assert shown["images"] == "4"
        assert shown["cost_usd"] > 0
    assert (
        "data:image/"
        in values(asset(dagster, "images")["assetMaterializations"][0]["metadataEntries"])["contact_sheet"]
    )
    checks = {
        check["name"]: check["executionForLatestMaterialization"]
        for name in GENERATION
        for check in asset(dagster, name)["assetChecksOrError"]["checks"]
    }
    assert checks.keys() == {
        "every_item_has_a_row",
        "costs_agree",
        "files_exist",
        "few_errors",
        "no_unknown_outcomes",
    }
    assert {name: check and check["status"] for name, check in checks.items()} == dict.fromkeys(checks, "SUCCEEDED")
    assert len([prompt for prompt in pipeline.accepted() if prompt.startswith("foxes")]) == 4


def test_the_launchpads_own_defaults_can_be_launched(dagster: DagsterDev) -> None:
    """It fills them in by itself, the resource's too: a key filled in as asterisks would be sent to the provider."""
    schema = dagster.query(
        "query($selector: PipelineSelector!) { runConfigSchemaOrError(selector: $selector) {"
        " ... on RunConfigSchema { rootDefaultYaml } } }",
        selector={
            "repositoryLocationName": "nanobanana_pipeline",
            "repositoryName": "__repository__",
            "pipelineName": "generate_images",
        },
    )
    config = schema["runConfigSchemaOrError"]["rootDefaultYaml"]
    assert "NANOBANANA_API_KEY" in config
    run = dagster.materialize(GENERATION, partition="foxes-000000", config=config)
    assert dagster.wait_for_end(run, LIMIT_S) == "SUCCESS", dagster.log[-5000:]


WRONG_VALUES = pytest.mark.parametrize(
    "config",
    [
        {"ops": {"generation": {"config": {"max_cost_usd": -1}}}},
        {"resources": {"nano_banana": {"config": {"budget_usd": -1}}}},
    ],
    ids=["asset", "resource"],
)


@WRONG_VALUES
def test_a_wrong_value_in_the_launchpad_makes_no_run(dagster: DagsterDev, config: dict[str, Any]) -> None:
    """It is refused where it was typed, and says what is right."""
    with pytest.raises(AssertionError, match="greater than or equal to 0"):
        dagster.materialize(GENERATION, partition="foxes-000000", config=config)


@WRONG_VALUES
def test_a_wrong_value_in_a_backfill_makes_no_run(dagster: DagsterDev, config: dict[str, Any]) -> None:
    """A thousand shards must not fail one by one: the backfill itself is refused, and says what is right."""
    backfill = dagster.backfill(GENERATION, ["foxes-000000", "owls-000000"], config=config)
    dagster.wait_for("its refusal", lambda: dagster.failure_of_backfill(backfill) is not None, LIMIT_S)
    assert "greater than or equal to 0" in str(dagster.failure_of_backfill(backfill))
    assert dagster.runs_of_backfill(backfill) == []


def test_terminate_stops_within_15_s_and_the_next_run_goes_on(dagster: DagsterDev, pipeline: Pipeline) -> None:
    """Who stops a run keeps what was sent: it is shown as in flight, and the next run pays for nothing twice."""

    def owls() -> int:
        return len([prompt for prompt in pipeline.accepted() if prompt.startswith("owls")])

    pipeline.simulator.set_faults([{"fault": "slow_task", "seconds": 300, "contains": "owls"}])
    run = dagster.materialize(GENERATION, partition="owls-000000")
    dagster.wait_for("the submits", lambda: owls() == 4, LIMIT_S)
    asked = time.monotonic()
    dagster.terminate(run)
    assert dagster.wait_for_end(run, 30) == "CANCELED"
    assert time.monotonic() - asked < 15
    statuses = {row["status"] for row in pipeline.table("results") if row["catalogue"] == "owls"}
    assert statuses == {"in_flight"}

    pipeline.simulator.advance(600)
    again = dagster.materialize(GENERATION, partition="owls-000000")
    assert dagster.wait_for_end(again, LIMIT_S) == "SUCCESS", dagster.log[-5000:]
    assert {row["status"] for row in pipeline.table("results")} == {"succeeded"}
    assert owls() == 4
    pipeline.assert_books_agree()


def test_a_backfill_is_one_run_a_shard(dagster: DagsterDev, pipeline: Pipeline) -> None:
    """The dialogue's "all missing": costs are counted once, and one shard's failure is not another's."""
    for name in ("crows", "daws"):
        pipeline.write([{"prompt_id": "one", "prompt": f"{name} on a wire", "resolution": "0.5K"}], name)
    assert dagster.wait_for_end(dagster.materialize(["prompts", "rejected_prompts"]), LIMIT_S) == "SUCCESS"
    backfill = dagster.backfill(GENERATION, ["crows-000000", "daws-000000"])

    def ended() -> bool:
        statuses = [run["status"] for run in dagster.runs_of_backfill(backfill)]
        assert "FAILURE" not in statuses, dagster.log[-5000:]
        return statuses == ["SUCCESS", "SUCCESS"]

    dagster.wait_for("the backfill's runs", ended, LIMIT_S)
    assert {row["status"] for row in pipeline.table("results")} == {"succeeded"}
    pipeline.assert_books_agree()


def test_a_file_is_noticed_when_it_comes_changes_and_goes(dagster: DagsterDev, pipeline: Pipeline) -> None:
    """The daemon's own sensor, on from the start: nobody clicks, and half a file is no file."""

    def prompts() -> dict[str, bool]:
        return {row["prompt"]: row["active"] for row in pipeline.table("prompts") if row["catalogue"] == "larks"}

    # Written elsewhere first: a sensor that looked between a whole file and its half would enter the whole one.
    beside = pipeline.write([{"prompt_id": "l", "prompt": "a lark"}], "_larks")
    whole = beside.read_bytes()
    beside.unlink()
    path = beside.with_name("larks.parquet")
    path.write_bytes(whole[:-5])
    dagster.wait_for("two looks at half a file", lambda: dagster.reasons("catalogue_sensor").count(HALF) >= 2, LIMIT_S)
    assert prompts() == {}
    path.write_bytes(whole)
    dagster.wait_for("the new file", lambda: prompts() == {"a lark": True}, LIMIT_S)
    pipeline.write([{"prompt_id": "l", "prompt": "a lark at dawn"}], "larks")
    dagster.wait_for("the changed file", lambda: prompts() == {"a lark at dawn": True}, LIMIT_S)
    path.unlink()
    dagster.wait_for("the removed file", lambda: prompts() == {"a lark at dawn": False}, LIMIT_S)
    assert pipeline.table("rejected_prompts") == []


def test_the_night_makes_what_was_put_off(dagster: DagsterDev, pipeline: Pipeline) -> None:
    """What the provider was too busy for, and what a cap had no room for, is made without anyone coming back to it."""
    pipeline.simulator.set_faults([{"fault": "unavailable_503_html", "contains": "busy"}])
    for what in ("busy", "capped"):
        rows = [{"prompt_id": f"j{n}", "prompt": f"{what}, number {n}", "resolution": "0.5K"} for n in range(2)]
        pipeline.write(rows, what)
    assert dagster.wait_for_end(dagster.materialize(["prompts", "rejected_prompts"]), LIMIT_S) == "SUCCESS"
    capped = {"ops": {"generation": {"config": {"max_cost_usd": 0.06}}}}
    for run in (
        dagster.materialize(GENERATION, partition="busy-000000"),
        dagster.materialize(GENERATION, partition="capped-000000", config=capped),
    ):
        assert dagster.wait_for_end(run, LIMIT_S) == "SUCCESS", dagster.log[-5000:]

    def standing() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"busy": [], "capped": []}
        for row in pipeline.table("results"):
            if row["catalogue"] in found:
                found[row["catalogue"]].append(row["status"])
        return {name: sorted(statuses) for name, statuses in found.items()}

    assert standing() == {"busy": ["deferred", "deferred"], "capped": ["deferred", "succeeded"]}
    pipeline.simulator.set_faults([])
    with dagster.schedule_on("nightly_generation"):
        dagster.wait_for(
            "the images of the night", lambda: {s for each in standing().values() for s in each} == {"succeeded"}, 240
        )
    assert len([prompt for prompt in pipeline.accepted() if prompt.startswith(("busy", "capped"))]) == 4
    pipeline.assert_books_agree()


def test_with_its_sensors_on_nobody_has_to_click(dagster: DagsterDev, pipeline: Pipeline, receiver: Receiver) -> None:
    """A file that is dropped in becomes images and reports, though its run is killed half-way, and is paid for once."""

    def submitted() -> int:
        return len([prompt for prompt in pipeline.accepted() if prompt.startswith("finches")])

    pipeline.simulator.set_faults([{"fault": "slow_task", "seconds": 3000, "contains": "finches"}])
    dagster.start_sensor("generation_sensor")
    rows = [{"prompt_id": f"f{n}", "prompt": f"finches, number {n}", "resolution": "0.5K"} for n in range(3)]
    pipeline.write(rows, "finches")
    dagster.wait_for("the tasks of the new file", lambda: pipeline.tasks_entered("finches") == 3, LIMIT_S)
    os.kill(dagster.worker_of("finches-000000"), signal.SIGKILL)
    pipeline.simulator.advance(6000)

    def statuses() -> set[str]:
        return {row["status"] for row in pipeline.table("results") if row["catalogue"] == "finches"}

    dagster.wait_for("the images of the new file", lambda: statuses() == {"succeeded"}, 240)
    assert submitted() == 3
    pipeline.assert_books_agree()

    def shown() -> bool:
        site = Path(pipeline.settings.output) / "site"
        return any(
            "finches, number" in page.read_text() for page in site.rglob("*.*") if page.suffix in {".html", ".js"}
        )

    dagster.wait_for("the gallery", shown, LIMIT_S)

    # Far more than the day's budget has room for: what fits is made, the rest waits, and a person is told.
    rows = [{"prompt_id": f"w{n}", "prompt": f"wrens, number {n}", "resolution": "0.5K"} for n in range(50)]
    pipeline.write(rows, "wrens")

    def told() -> bool:
        return any(alert["key"].endswith("/100") for body in receiver.bodies for alert in body["alerts"])

    dagster.wait_for("the alert that the cap is reached", told, 240)
    assert pipeline.simulator.api_key not in str(receiver.bodies)

    def put_off() -> bool:
        found = {row["status"] for row in pipeline.table("results") if row["catalogue"] == "wrens"}
        return found == {"succeeded", "deferred"}

    dagster.wait_for("the end of the run that reached the cap", put_off, 240)
    pipeline.assert_books_agree()


def test_the_key_is_nowhere(dagster: DagsterDev, pipeline: Pipeline) -> None:
    """Neither in Dagster's databases, logs and pages nor in the output: only in the environment."""
    config = dagster.query(
        "query($selector: ResourceSelector!) { topLevelResourceDetailsOrError(resourceSelector: $selector) {"
        " ... on ResourceDetails { configuredValues { key value } } } }",
        selector={
            "repositoryLocationName": "nanobanana_pipeline",
            "repositoryName": "__repository__",
            "resourceName": "nano_banana",
        },
    )
    assert pipeline.simulator.api_key not in str(config)
    holding = [
        path
        for path in pipeline.folder.rglob("*")
        if path.is_file() and pipeline.simulator.api_key.encode() in path.read_bytes()
    ]
    assert holding == [], Path(pipeline.folder)
