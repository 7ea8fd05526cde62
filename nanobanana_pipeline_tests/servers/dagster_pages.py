"""Dagster's pages, spoken to by their GraphQL API as they do themselves, wherever their server is."""

import json
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.error import HTTPError

LOCATION = "nanobanana_pipeline"

_LAUNCH = """
mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } }
} }"""
_RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } } } }"
_TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"

_BACKFILL = """
mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename
  ... on LaunchBackfillSuccess { backfillId }
  ... on PythonError { message }
} }"""
_BACKFILL_RUNS = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { runs(limit: 100) { runId status } }
} }"""
_BACKFILL_FAILURE = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status error { message causes { message } } }
} }"""
_START_SCHEDULE = """
mutation($selector: ScheduleSelector!) { startSchedule(scheduleSelector: $selector) {
  __typename
  ... on PythonError { message }
} }"""
_STOP_SCHEDULE = "mutation($id: String!) { stopRunningSchedule(id: $id) { __typename } }"
_SCHEDULE = """
query($selector: ScheduleSelector!) { scheduleOrError(scheduleSelector: $selector) {
  ... on Schedule { scheduleState { id } }
} }"""
_TICKS = """
query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
  ... on Sensor { sensorState { ticks(limit: 20) { skipReason } } }
} }"""
_START_SENSOR = """
mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) {
  __typename
  ... on PythonError { message }
} }"""


class DagsterPages:
    """What a person does in the pages at `url`."""

    url: str

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def log(self) -> str:
        """What the servers have said, for the message of a failure."""
        return ""

    def assert_alive(self) -> None:
        """Fail when the servers have ended."""

    def query(self, query: str, **variables: Any) -> Any:
        """The data that a GraphQL query gives."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310 - its own address
        try:
            with self._opener.open(request, timeout=60) as answer:
                found = json.load(answer)
        except HTTPError as error:
            # How GraphQL over HTTP says that a query failed.
            with error:
                raise AssertionError(error.read().decode()[:5000]) from None
        assert "errors" not in found, found["errors"]
        return found["data"]

    def materialize(
        self,
        assets: Sequence[str],
        *,
        partition: str | None = None,
        config: Mapping[str, Any] | str = "",
        location: str = LOCATION,
    ) -> str:
        """What the Materialize button does; the run's id, or the refusal as an `AssertionError`.

        An asset of a pipeline with a name is `name/asset`.
        """
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {
            "selector": {
                "repositoryLocationName": location,
                "repositoryName": "__repository__",
                "pipelineName": "__ASSET_JOB",
                "assetSelection": [{"path": name.split("/")} for name in assets],
            },
            "mode": "default",
            "runConfigData": config if isinstance(config, str) else json.dumps(config),
            "executionMetadata": {"tags": tags},
        }
        launched = self.query(_LAUNCH, params=params)["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return launched["run"]["runId"]

    def backfill(
        self, assets: Sequence[str], partitions: Sequence[str], *, config: Mapping[str, Any] | None = None
    ) -> str:
        """What the dialogue for many partitions does; the backfill's id."""
        params: dict[str, Any] = {
            "assetSelection": [{"path": [name]} for name in assets],
            "partitionNames": list(partitions),
        }
        if config is not None:
            params["runConfigData"] = json.dumps(config)
        launched = self.query(_BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return launched["backfillId"]

    def runs_of_backfill(self, backfill_id: str) -> list[dict[str, str]]:
        """Its runs."""
        return self.query(_BACKFILL_RUNS, id=backfill_id)["partitionBackfillOrError"]["runs"]

    def failure_of_backfill(self, backfill_id: str) -> str | None:
        """What a person reads of a backfill that failed by itself; None while it has not."""
        found = self.query(_BACKFILL_FAILURE, id=backfill_id)["partitionBackfillOrError"]
        error = found["error"]
        if error is None or not found["status"].startswith("FAIL"):
            return None
        return "\n".join([error["message"], *(cause["message"] for cause in error["causes"])])

    def reasons(self, sensor: str) -> list[str]:
        """Why the sensor's latest ticks started nothing, as its page shows."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "sensorName": sensor}
        found = self.query(_TICKS, selector=selector)["sensorOrError"]["sensorState"]["ticks"]
        return [tick["skipReason"] for tick in found if tick["skipReason"]]

    def start_sensor(self, name: str) -> None:
        """What the sensor's switch does."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "sensorName": name}
        answer = self.query(_START_SENSOR, selector=selector)["startSensor"]
        assert answer["__typename"] == "Sensor", answer

    @contextmanager
    def schedule_on(self, name: str) -> Generator[None]:
        """With the schedule's switch on."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "scheduleName": name}
        answer = self.query(_START_SCHEDULE, selector=selector)["startSchedule"]
        assert answer["__typename"] == "ScheduleStateResult", answer
        try:
            yield
        finally:
            state = self.query(_SCHEDULE, selector=selector)["scheduleOrError"]["scheduleState"]
            self.query(_STOP_SCHEDULE, id=state["id"])

    def status(self, run_id: str) -> str:
        """A run's status."""
        return self.query(_RUN, id=run_id)["runOrError"]["status"]

    def wait_for_end(self, run_id: str, within_s: float) -> str:
        """The status that a run ends with."""
        ended = ("SUCCESS", "FAILURE", "CANCELED")
        self.wait_for(f"the end of run {run_id}", lambda: self.status(run_id) in ended, within_s)
        return self.status(run_id)

    def terminate(self, run_id: str) -> None:
        """What the Terminate button does."""
        answer = self.query(_TERMINATE, id=run_id)["terminateRun"]["__typename"]
        assert answer == "TerminateRunSuccess", answer

    def wait_for(self, what: str, condition: Callable[[], bool], within_s: float) -> None:
        """Wait until a condition holds; what Dagster has said is in the failure."""
        deadline = time.monotonic() + within_s
        while not condition():
            self.assert_alive()
            assert time.monotonic() < deadline, f"{what} did not come within {within_s} s:\n{self.log[-5000:]}"
            time.sleep(0.2)

    def loaded(self) -> bool:
        """Whether the pages are up, and have the pipeline."""
        with suppress(OSError):
            entries = self.query(
                "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus "
                "locationOrLoadError { __typename } } } } }"
            )["workspaceOrError"]["locationEntries"]
            return {(entry["locationOrLoadError"] or {}).get("__typename") for entry in entries} == {
                "RepositoryLocation"
            }
        return False
