"""The reports through Dagster."""

from decimal import Decimal
from pathlib import Path

import dagster as dg

from nanobanana_pipeline.reporting.reconcile import reconcile
from nanobanana_pipeline_tests.orchestration.conftest import Orchestra, rows


def test_reports_show_what_was_spent_and_made(orchestra: Orchestra) -> None:
    """The last step of the way: what people who never open Dagster read."""
    orchestra.pipeline.write(rows(3, campaign="spring"))
    orchestra.refresh()
    orchestra.generate()
    result = orchestra.execute("report_costs")
    assert result.success
    told = {
        event.asset_key.to_user_string(): {name: value.value for name, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }
    spent = sum(Decimal(row["cost_usd"]) for row in orchestra.pipeline.billed())
    assert told.keys() == {"cost_daily", "cost_report", "gallery"}
    assert [metadata["mode"] for metadata in told.values()] == ["simulated"] * 3
    assert Decimal(str(told["cost_daily"]["cost_usd_exact"])) == spent
    assert "spring" in str(told["cost_daily"]["costs"])
    for name in ("cost_report", "gallery"):
        assert Path(str(told[name]["page"])).stat().st_size > 1000
    assert told["gallery"]["images"] == 3


def test_an_invoice_that_drifts_is_a_warning_on_its_table(orchestra: Orchestra, tmp_path: Path) -> None:
    """It is held against the books on some command line; whoever opens the reports must see what came of it."""
    orchestra.pipeline.write(rows(2))
    orchestra.refresh()
    orchestra.generate()
    invoice = tmp_path / "may.csv"
    lines = [f"{row['task_id']},{row['cost_usd']}" for row in orchestra.pipeline.billed()]
    for content, passed in ((lines, True), ([*lines, "stranger,0.05"], False)):
        invoice.write_text("\n".join(["task_id,amount", *content]))
        with orchestra.pipeline.open() as workspace:
            reconcile(workspace, invoice)
        result = orchestra.execute("report_costs")
        assert result.success, "a warning stops nothing"
        (verdict,) = result.get_asset_check_evaluations()
        assert (verdict.check_name, verdict.passed) == ("invoices_agree", passed)
        (observed,) = result.get_asset_observation_events()
        metadata = observed.asset_observation_data.asset_observation.metadata
        assert metadata["dagster/row_count"].value == len(content)


def test_no_page_is_written_over_tables_that_a_blocking_check_found_wrong(orchestra: Orchestra) -> None:
    """The failed check ended its own run only; the report's run, which a sensor starts, has to hold back by itself."""
    orchestra.pipeline.write(rows(2))
    orchestra.refresh()
    assert orchestra.generate().success
    wrong = dg.AssetCheckEvaluation(
        dg.AssetKey("attempts"), "costs_agree", passed=False, metadata={}, partition="cat-000000"
    )
    orchestra.instance.report_runless_asset_event(wrong)
    result = orchestra.execute("report_costs")
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure and event.step_key == "gallery"]
    assert "cat-000000" in str(failure.step_failure_data)
    assert orchestra.generate().success
    assert orchestra.execute("report_costs").success


def test_reports_of_an_empty_workspace_are_empty(orchestra: Orchestra) -> None:
    """Someone clicks "materialise all" first: that must not fail."""
    assert orchestra.execute("report_costs").success


def test_maintenance_leaves_every_row_where_it_was(orchestra: Orchestra) -> None:
    """It runs unattended, on tables that people query, and on a workspace that has none yet."""
    assert orchestra.execute("maintain_tables").success
    orchestra.pipeline.write(rows(3))
    orchestra.refresh()
    orchestra.generate()
    before = orchestra.pipeline.results()
    assert orchestra.execute("maintain_tables").success
    assert orchestra.pipeline.results() == before
