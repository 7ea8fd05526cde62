"""A run that finds nothing to do says so at once; whatever has changed since makes it a run like any other."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation import rest
from nanobanana_pipeline.ledger.ledger import Stamp
from nanobanana_pipeline.orchestration.at_rest import outcome_at_rest
from nanobanana_pipeline.orchestration.order import Order
from nanobanana_pipeline.reporting.costs import summary
from nanobanana_pipeline.storage import delta_log
from nanobanana_pipeline_tests.generation.pipelines import Pipeline


@pytest.fixture
def resting(pipeline: Pipeline) -> Pipeline:
    """A pipeline whose last run found nothing to do, and noted it."""
    pipeline.write([{"prompt_id": "p", "prompt": "a picture"}])
    pipeline.run()
    with pipeline.open() as workspace:
        workspace.ledger.claim(Stamp("simulated", pipeline.simulator.base_url))
        rest.note(workspace, rest.look(workspace), {"standing": asdict(summary(workspace)), "rejected_rows": 0})
    return pipeline


def test_what_stands_is_told_without_another_look(resting: Pipeline) -> None:
    """The figures are those of the run that looked."""
    outcome = outcome_at_rest(resting.settings, Order())
    assert outcome is not None
    assert (outcome.stamp.mode, outcome.run_ids, outcome.log, outcome.tally.submitted) == ("simulated", [], None, 0)
    with resting.open() as workspace:
        assert outcome.standing == summary(workspace)


def test_it_needs_no_dagster() -> None:
    """Loading Dagster took more CPU than the rest of a run that finds nothing to do."""
    loaded = "import nanobanana_pipeline.orchestration.at_rest, sys; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def _edit_a_prompt(resting: Pipeline) -> None:
    resting.write([{"prompt_id": "p", "prompt": "another picture"}])


def _add_a_catalogue(resting: Pipeline) -> None:
    resting.write([{"prompt_id": "p", "prompt": "a picture"}], name="new")


def _remove_the_catalogue(resting: Pipeline) -> None:
    (resting.folder / "catalogue" / "cat.parquet").unlink()


def _correct_a_cost(resting: Pipeline) -> None:
    (attempt,) = resting.attempts("p")
    with resting.open() as workspace, workspace.ledger.posting() as postings:
        assert postings.correct(attempt["attempt_id"], 1, "invoice") is not None


def _tear_a_table(resting: Pipeline) -> None:
    with resting.open() as workspace:
        delta_log.entry(workspace.tables.uri("results"), workspace.tables.ensure("results")).write_bytes(b"")


@pytest.mark.parametrize(
    "change", [_edit_a_prompt, _add_a_catalogue, _remove_the_catalogue, _correct_a_cost, _tear_a_table]
)
def test_any_change_makes_it_a_run(resting: Pipeline, change: Callable[[Pipeline], None]) -> None:
    """What the tables, the reports or the work could differ in must be looked at."""
    change(resting)
    assert outcome_at_rest(resting.settings, Order()) is None


def test_what_is_asked_for_is_done(resting: Pipeline) -> None:
    """To pay for an image again is work, though none is missing; a catalogue by name has figures of its own."""
    for order in (Order(regenerate=True), Order(regenerate=True, items=("p",)), Order(catalogue="cat")):
        assert outcome_at_rest(resting.settings, order) is None
    # These say what may be done, and there is nothing.
    for order in (Order(limit=5), Order(retry_failed=True), Order(max_cost_usd=Decimal(1))):
        assert outcome_at_rest(resting.settings, order) is not None


def test_work_of_another_provider_counts_for_nothing(resting: Pipeline) -> None:
    """Simulated pictures must never be said to be all there is to make."""
    live = resting.settings.model_copy(update={"base_url": None})
    with pytest.raises(UserError, match="holds simulated work"):
        outcome_at_rest(live, Order())
    # Only the one at the base URL could say whose work this would be, so its silence is for the run to tell.
    nobody = resting.settings.model_copy(update={"base_url": "http://127.0.0.1:9"})
    assert outcome_at_rest(nobody, Order()) is None
