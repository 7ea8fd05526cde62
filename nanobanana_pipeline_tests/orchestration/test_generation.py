"""A shard through Dagster: what a run makes, says and costs, and how it ends when something goes wrong."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.orchestration.run_tags import RUN_SCOPE_TAG, Ended
from nanobanana_pipeline.orchestration.session import Session
from nanobanana_pipeline_tests.orchestration.conftest import Orchestra, failure_of, rows


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """The metadata of each materialisation, by asset."""
    return {
        event.asset_key.to_user_string(): {name: value.value for name, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


def events_text(instance: dg.DagsterInstance) -> str:
    """The whole event log of every run, as text."""
    return "\n".join(str(entry) for run in instance.get_runs() for entry in instance.all_logs(run.run_id))


def test_a_shard_becomes_images_and_tables(orchestra: Orchestra) -> None:
    """The product in one test: what is in the catalogue is on disk, in the tables and in the provider's book."""
    orchestra.pipeline.write(rows(5, samples=2))
    orchestra.refresh()
    assert orchestra.instance.get_dynamic_partitions("shards") == ["cat-000000"]
    result = orchestra.generate()
    assert result.success
    assert [row["status"] for row in orchestra.pipeline.table("results")] == ["succeeded"] * 10
    assert len(orchestra.pipeline.accepted()) == 10
    orchestra.pipeline.assert_books_agree()
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == dict.fromkeys(
        ("every_item_has_a_row", "costs_agree", "files_exist", "few_errors", "no_unknown_outcomes"), True
    )
    assert {check.partition for check in result.get_asset_check_evaluations()} == {"cat-000000"}


def test_each_materialisation_tells_what_was_made_and_paid(orchestra: Orchestra) -> None:
    """People judge a run by what its asset's page shows, and sum costs over runs."""
    orchestra.pipeline.write([*rows(3), {"prompt_id": "forbidden", "prompt": "a fox", "resolution": "0.5K"}])
    orchestra.pipeline.simulator.set_faults([{"fault": "refused_400_moderation", "prompt": "a fox"}])
    orchestra.refresh()
    told = materialized(orchestra.generate())
    spent = sum(Decimal(row["cost_usd"]) for row in orchestra.pipeline.billed())
    assert told.keys() == {"images", "results", "attempts"}
    for metadata in told.values():
        assert metadata["mode"] == "simulated"
        assert metadata["images"] == 3
        assert metadata["cost_usd"] == pytest.approx(float(spent))
        assert Decimal(metadata["cost_usd_exact"]) == spent
        assert metadata["at_risk_usd_exact"] == "0.000000"
        assert metadata["completion_tokens"] > 0
        assert metadata["duration_s"] > 0
        assert "| succeeded | 3 |" in metadata["items"]
        assert Path(str(metadata["table"])).is_dir()
    assert told["results"]["dagster/row_count"] == told["results"]["dagster/partition_row_count"] == 4
    assert told["images"]["dagster/row_count"] == 3
    assert "data:image/" in told["images"]["contact_sheet"]
    assert len(told["images"]["contact_sheet"]) < 10_000


def test_what_is_done_costs_nothing_again(orchestra: Orchestra) -> None:
    """A shard may be materialised over and over: by hand, in backfills, by sensors."""
    orchestra.pipeline.write(rows(3))
    orchestra.refresh()
    orchestra.generate()
    again = orchestra.generate()
    assert again.success
    assert len(orchestra.pipeline.accepted()) == 3
    assert materialized(again)["results"]["cost_usd"] == 0.0
    assert materialized(again)["results"]["shard_cost_usd"] > 0.0


def test_a_pilot_and_then_the_rest(orchestra: Orchestra) -> None:
    """People try a few before they pay for all, and must not pay for those few twice."""
    orchestra.pipeline.write(rows(5))
    orchestra.refresh()
    orchestra.generate(limit=2)
    assert len(orchestra.pipeline.accepted()) == 2
    orchestra.generate()
    assert len(orchestra.pipeline.accepted()) == 5


def test_a_re_execution_repeats_nothing_paid(orchestra: Orchestra) -> None:
    """Dagster's re-execution copies the parent's config: `regenerate` in it would pay for everything again."""
    orchestra.pipeline.write(rows(2))
    orchestra.refresh()
    orchestra.generate()
    first = orchestra.generate(regenerate=True)
    assert len(orchestra.pipeline.accepted()) == 4
    again = orchestra.re_execute(first, regenerate=True)
    assert again.success
    assert len(orchestra.pipeline.accepted()) == 4


def test_runs_of_one_scope_share_their_cap(orchestra: Orchestra) -> None:
    """A cap on a backfill of many shards that held for each shard alone would be no cap."""
    orchestra.pipeline.write(rows(2), "one")
    orchestra.pipeline.write([{"prompt": "an owl"}, {"prompt": "a crow"}], "two")
    orchestra.refresh()
    orchestra.tags = {RUN_SCOPE_TAG: "together"}
    orchestra.generate("one-000000", max_cost_usd=0.15)
    orchestra.generate("two-000000", max_cost_usd=0.15)
    spent = sum(Decimal(row["cost_usd"]) for row in orchestra.pipeline.billed())
    assert 0 < spent <= Decimal("0.15")
    assert {row["status"] for row in orchestra.pipeline.table("results")} == {"succeeded", "deferred"}


def test_a_wrong_key_stops_at_once_and_is_nowhere_to_be_found(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line that says what to do, nothing charged, and the secret in no file of the output or of Dagster's."""
    orchestra.pipeline.write(rows(3))
    orchestra.refresh()
    secret = "wrong-" + "key-of-many-letters"
    monkeypatch.setenv("NANOBANANA_API_KEY", secret)
    result = orchestra.generate()
    assert not result.success
    assert "NANOBANANA_API_KEY" in failure_of(result)
    error = next(event.step_failure_data.error for event in result.all_events if event.is_step_failure)
    assert error is not None
    assert "UserError" not in error.to_string()
    assert orchestra.pipeline.billed() == []
    assert {row["status"] for row in orchestra.pipeline.table("results")} == {"pending"}
    assert Ended.noted_on(orchestra.run_of(result)) is Ended.BY_AN_ERROR
    assert secret not in events_text(orchestra.instance)
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holding == []


def test_a_provider_out_of_reach_is_one_line_before_anything_is_spent(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every item of the shard would be tried in vain, and each would tell it in its own way."""
    orchestra.pipeline.write(rows(2))
    orchestra.refresh()
    monkeypatch.setenv("NANOBANANA_BASE_URL", "http://127.0.0.1:9")
    result = orchestra.generate()
    assert not result.success
    assert "can't reach the API at http://127.0.0.1:9" in failure_of(result)
    assert orchestra.pipeline.table("attempts") == []


def test_a_run_for_no_shard_or_for_several_is_one_line(orchestra: Orchestra) -> None:
    """Dagster starts such runs when asked to; costs of several shards in one run would be counted for each."""
    orchestra.pipeline.write(rows(1), "a")
    orchestra.pipeline.write([{"prompt": "an owl"}], "b")
    orchestra.refresh()
    assert "for 0 shards" in failure_of(orchestra.execute("generate_images"))
    orchestra.tags = {
        "dagster/asset_partition_range_start": "a-000000",
        "dagster/asset_partition_range_end": "b-000000",
    }
    assert "for 2 shards" in failure_of(orchestra.execute("generate_images"))
    assert orchestra.pipeline.accepted() == []


def test_a_stop_ends_as_canceled_and_the_next_run_goes_on(orchestra: Orchestra) -> None:
    """A person who stops a run must see that it was stopped, and pay for nothing twice when they go on."""
    orchestra.pipeline.write(rows(4))
    orchestra.refresh()
    session = Session()

    def stop_when_in_flight(_shard: str, tally: Tally) -> None:
        if tally.submitted == 4:
            session.stop.throw()

    session.on_progress = stop_when_in_flight
    orchestra.session = session
    orchestra.pipeline.simulator.set_faults([{"fault": "slow_task", "seconds": 300}])
    stopped = orchestra.generate()
    assert orchestra.run_of(stopped).status is dg.DagsterRunStatus.CANCELED
    assert Ended.noted_on(orchestra.run_of(stopped)) is Ended.BY_A_SIGNAL
    assert {row["status"] for row in orchestra.pipeline.table("results")} == {"in_flight"}
    observed = [event for event in stopped.all_events if event.is_asset_observation]
    assert len(observed) == 1

    orchestra.session = None
    orchestra.pipeline.simulator.advance(600)
    assert orchestra.generate().success
    assert {row["status"] for row in orchestra.pipeline.table("results")} == {"succeeded"}
    assert len(orchestra.pipeline.accepted()) == 4
    orchestra.pipeline.assert_books_agree()


def test_a_run_without_key_works_with_the_simulator(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a fresh clone and no key, the first click must work, and cost nothing."""
    monkeypatch.delenv("NANOBANANA_API_KEY")
    monkeypatch.delenv("NANOBANANA_BASE_URL")
    monkeypatch.chdir(tmp_path)
    orchestra.pipeline.write(rows(1))
    orchestra.refresh()
    result = orchestra.generate()
    assert result.success
    assert materialized(result)["results"]["mode"] == "simulated"
    assert (tmp_path / "data/demo/simulator/book.jsonl").exists()
    assert not (tmp_path / "output").exists()
