"""A price file that comes late, and reaches back."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from nanobanana_pipeline.generation.adoption import adopt_tables
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.reporting.costs import summary
from nanobanana_pipeline.reporting.reconcile import reconcile
from nanobanana_pipeline.reporting.repricing import reprice
from nanobanana_pipeline_tests.reporting.conftest import HALF_PRICE, World, rows


def test_prices_that_come_late_restate_what_was_priced_by_a_list(world: Callable[..., World]) -> None:
    """And nothing else: what the provider itself said it cost is no matter of lists."""
    made = world(faults=[{"contains": "number 1", "fault": "usage_cost", "cost": "0.05"}])
    made.catalogue("one", rows(4))
    made.run()
    before = summary(made.workspace)
    prices = made.folder / "prices.toml"
    prices.write_text(HALF_PRICE)
    settings = made.workspace.settings.model_copy(update={"prices": str(prices)})

    with made.elsewhere(settings) as workspace:
        report = reprice(workspace)
        again = reprice(workspace)

    assert workspace.spec.prices != load_spec().prices
    after = summary(made.workspace)
    assert (report.attempts, again.attempts) == (3, 0)
    assert after.cost_micros == pytest.approx(50_000 + (before.cost_micros - 50_000) / 2, abs=3)
    assert after.cost_micros - before.cost_micros == report.after_micros - report.before_micros
    tables = made.workspace.tables
    totals = {
        name: sum(tables.read(name).column("cost_usd").to_pylist()) for name in ("attempts", "results", "cost_daily")
    }
    assert set(totals.values()) == {Decimal(after.cost_micros).scaleb(-6)}
    held = [counter.spent for scope, counter in made.workspace.ledger.counters().items() if scope.startswith("day:")]
    assert held == [after.cost_micros]
    assert "negotiated" in tables.read("attempts").column("price_version").to_pylist()


def test_prices_reach_back_no_further_than_they_are_valid(world: Callable[..., World]) -> None:
    """A contract that begins later restated all that was paid before it, as the nearest list in time."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    before = summary(made.workspace).cost_micros
    prices = made.folder / "prices.toml"
    prices.write_text(HALF_PRICE.replace("2026-01-01", "2999-01-01"))

    with made.elsewhere(made.workspace.settings.model_copy(update={"prices": str(prices)})) as workspace:
        assert reprice(workspace).attempts == 0

    assert summary(made.workspace).cost_micros == before


def test_an_invoice_that_comes_while_prices_are_restated_keeps_the_last_word(world: Callable[..., World]) -> None:
    """Attempts were looked at, then corrected by an invoice, then restated by the list: the invoice's word was gone."""
    made = world()
    made.catalogue("one", rows(2))
    made.run()
    invoice = made.folder / "may.csv"
    first, second = made.workspace.tables.read("attempts").to_pylist()
    invoice.write_text(f"id,amount\n{first['task_id']},0.05\n")
    prices = made.folder / "prices.toml"
    prices.write_text(HALF_PRICE)

    def invoice_comes(_looked_at: int) -> None:
        assert reconcile(made.workspace, invoice, correct=True).corrected == 1

    with made.elsewhere(made.workspace.settings.model_copy(update={"prices": str(prices)})) as workspace:
        report = reprice(workspace, on_progress=invoice_comes)

    after = {row["attempt_id"]: row for row in made.workspace.tables.read("attempts").to_pylist()}
    billed, listed = after[first["attempt_id"]], after[second["attempt_id"]]
    assert (billed["cost_source"], billed["cost_usd"]) == ("invoice", Decimal("0.05"))
    assert listed["price_version"] == "negotiated"
    assert report.attempts == 1
    assert report.before_micros == int(second["cost_usd"].scaleb(6))


def test_a_ledger_adopted_from_the_tables_knows_what_several_images_cost(world: Callable[..., World]) -> None:
    """It has no addresses to count: two images became one, and half of what was paid was gone from the books.

    Of an image that an edit superseded it has no file to count either: such an attempt keeps its price.
    """
    made = world(faults=[{"contains": "number 1", "fault": "several_images", "images": 2}])
    made.catalogue("one", rows(2))
    made.run()
    made.catalogue("one", [row | {"resolution": "2K"} for row in rows(2)])
    made.run()
    before = {row["attempt_id"]: row for row in made.workspace.tables.read("attempts").to_pylist()}
    prices = made.folder / "prices.toml"
    prices.write_text(HALF_PRICE)
    adopting = {"prices": str(prices), "ledger_url": f"sqlite:///{made.folder}/adopted.sqlite"}

    with Workspace.open(made.workspace.settings.model_copy(update=adopting)) as workspace:
        adopt_tables(workspace)
        report = reprice(workspace)
        after = workspace.tables.read("attempts").to_pylist()

    assert (report.attempts, report.left) == (2, 2)
    for row in after:
        was = before[row["attempt_id"]]["cost_usd"]
        assert row["cost_usd"] == pytest.approx(was / 2 if row["resolution"] == "2K" else was, abs=Decimal("0.000001"))


def test_an_image_that_never_came_is_no_reason_to_halve_its_task_s_price(world: Callable[..., World]) -> None:
    """Of two images that were billed one was stored, and after the ledger was lost nobody knows of the other.

    All was shown as it had been, and its task was priced anew as one of a single image: half of the money was gone.
    """
    made = world(faults=[{"fault": "several_images", "images": 2}, {"fault": "image_404", "times": 4}])
    made.catalogue("one", rows(1))
    made.run()
    (before,) = made.workspace.tables.read("attempts").to_pylist()
    shown = {name: made.workspace.tables.read(name).to_pylist() for name in ("images", "results")}
    assert (before["state"], len(shown["images"])) == ("stored", 1)
    assert before["cost_usd"] == made.billed()
    prices = made.folder / "prices.toml"
    prices.write_text(HALF_PRICE)
    adopting = {"prices": str(prices), "ledger_url": f"sqlite:///{made.folder}/adopted.sqlite"}

    with Workspace.open(made.workspace.settings.model_copy(update=adopting)) as workspace:
        adopt_tables(workspace)
        report = reprice(workspace)
        cost_micros = summary(workspace).cost_micros
        assert {name: workspace.tables.read(name).to_pylist() for name in shown} == shown

    assert (report.attempts, report.left) == (0, 1)
    assert cost_micros == int(made.billed().scaleb(6))
