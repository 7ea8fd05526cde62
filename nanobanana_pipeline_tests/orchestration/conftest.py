"""The pipeline in a Dagster instance of its own, against a real simulator."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.instance import prepare_home
from nanobanana_pipeline.orchestration.jobs import generation_config
from nanobanana_pipeline.orchestration.session import Session
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import Pipeline


def generate_images_job() -> dg.JobDefinition:
    """The job, as another process would load it."""
    return build_defs().resolve_job_def("generate_images")


@dataclass
class Orchestra:
    """A pipeline, and the Dagster instance that runs it in this process."""

    pipeline: Pipeline
    instance: dg.DagsterInstance
    session: Session | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def execute(self, job: str, **arguments: Any) -> dg.ExecuteInProcessResult:
        """Run a job; a run that fails is a result, not an exception."""
        definition = build_defs(session=self.session).resolve_job_def(job)
        return definition.execute_in_process(instance=self.instance, raise_on_error=False, tags=self.tags, **arguments)

    def refresh(self) -> dg.ExecuteInProcessResult:
        """Enter the catalogues."""
        result = self.execute("refresh_catalogue")
        assert result.success
        return result

    def generate(self, shard: str = "cat-000000", **options: Any) -> dg.ExecuteInProcessResult:
        """Run a shard, with these options of the launchpad."""
        return self.execute("generate_images", partition_key=shard, run_config=generation_config(**options))

    def re_execute(
        self, run: dg.ExecuteInProcessResult, shard: str = "cat-000000", **options: Any
    ) -> dg.JobExecutionResult:
        """Run a shard's run once more, as its page offers."""
        # Dagster keeps the last job that it loaded like this: another test's, with its settings.
        ReconstructableJob.get_definition.cache_clear()
        ReconstructableJob.get_repository_definition.cache_clear()
        return dg.execute_job(
            dg.reconstructable(generate_images_job),
            instance=self.instance,
            run_config=generation_config(**options),
            tags={"dagster/partition": shard},
            reexecution_options=dg.ReexecutionOptions(parent_run_id=run.run_id),
        )

    def run_of(self, result: dg.ExecuteInProcessResult) -> dg.DagsterRun:
        """The run as the instance has it."""
        run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """A real instance on a home of its own."""
    home = prepare_home(tmp_path / "dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulator: Callable[..., SimulatorProcess]) -> Pipeline:
    """A pipeline against a simulator that takes a twentieth of a second an image, known to the environment."""
    pipeline = Pipeline(tmp_path, simulator(latency=0.05))
    settings = pipeline.settings
    monkeypatch.setenv("NANOBANANA_API_KEY", pipeline.simulator.api_key)
    monkeypatch.setenv("NANOBANANA_BASE_URL", pipeline.simulator.base_url)
    monkeypatch.setenv("NANOBANANA_OUTPUT", settings.output)
    monkeypatch.setenv("NANOBANANA_CATALOGUE", settings.catalogue)
    return pipeline


@pytest.fixture
def orchestra(pipeline: Pipeline, instance: dg.DagsterInstance) -> Orchestra:
    """The pipeline in the instance."""
    return Orchestra(pipeline, instance)


def rows(count: int, **columns: Any) -> list[dict[str, Any]]:
    """So many prompts, small ones."""
    return [{"prompt_id": f"p{n}", "prompt": f"fox {n}", "resolution": "0.5K", **columns} for n in range(count)]


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """What a person reads of a failed step."""
    data = next(event.step_failure_data for event in result.all_events if event.is_step_failure)
    assert data.user_failure_data is not None, data.error
    return str(data.user_failure_data.description)
