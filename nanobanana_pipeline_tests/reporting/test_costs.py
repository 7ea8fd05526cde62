"""`cost_daily` and the summary: what counts where. That all places agree is `test_agreement`'s."""

from collections.abc import Callable
from decimal import Decimal

import orjson
import sqlalchemy as sa

from nanobanana_pipeline.ledger import budget, schema
from nanobanana_pipeline.ledger.work import Rerun
from nanobanana_pipeline.reporting.cost_page import cost_data
from nanobanana_pipeline.reporting.costs import per_image, publish_cost_daily, shard_tables, shown, summary
from nanobanana_pipeline.reporting.glance import INLINE_CHARS, bar, cell
from nanobanana_pipeline_tests.reporting.conftest import World, rows

FAULTS = (
    {"contains": "number 3", "fault": "failed", "times": 1},
    {"contains": "number 4", "fault": "failed_billed", "code": 5001095},
    {"contains": "number 5", "fault": "image_html"},
    {"contains": "number 6", "fault": "refused_400_moderation"},
    {"contains": "number 7", "fault": "answer_lost"},
    {"contains": "number 8", "fault": "several_images", "images": 3},
)


def test_a_report_written_twice_is_the_same(world: Callable[..., World]) -> None:
    """The same cost counted again at every look is a known way to fail."""
    made = world()
    made.catalogue("plain", rows(5))
    made.run()

    first = publish_cost_daily(made.workspace)
    second = publish_cost_daily(made.workspace)

    assert first == second
    assert made.workspace.tables.read("cost_daily").num_rows == second.rows == 1


def test_an_edit_adds_its_cost_and_keeps_the_old_one(world: Callable[..., World]) -> None:
    """What was paid stays paid: the old image's cost must neither vanish nor move to the new campaign."""
    made = world()
    made.catalogue("plain", rows(3, campaign="before"))
    made.run()
    before = summary(made.workspace)
    edited = rows(3, campaign="before")
    edited[0] |= {"prompt": "something else", "campaign": "after"}
    made.catalogue("plain", edited)

    made.run()

    publish_cost_daily(made.workspace)
    found = {row["campaign"]: row for row in made.workspace.tables.read("cost_daily").to_pylist()}
    assert (found["before"]["items"], found["before"]["images"]) == (3, 3)
    assert (found["after"]["items"], found["after"]["succeeded"]) == (1, 1)
    after = summary(made.workspace)
    assert found["before"]["cost_usd"] == _usd(before.cost_micros)
    assert after.cost_micros == before.cost_micros + int(found["after"]["cost_usd"] * 1_000_000)
    assert after.images_in_use == 3
    assert after.wasted_micros == _cost_of(made, "p000", attempt=1)


def test_items_are_counted_once_a_day_however_often_they_were_tried(world: Callable[..., World]) -> None:
    """Three tries of one item are one item: else success rates are wrong exactly when things go wrong."""
    made = world(
        faults=[{"contains": "number 0", "fault": "failed"}, {"contains": "number 1", "fault": "failed", "times": 2}]
    )
    made.catalogue("plain", rows(3))
    made.run()

    publish_cost_daily(made.workspace)

    (row,) = made.workspace.tables.read("cost_daily").to_pylist()
    assert (row["items"], row["succeeded"], row["failed"], row["images"]) == (3, 2, 1, 2)
    assert made.workspace.tables.read("attempts").num_rows == 7
    assert row["cost_per_image_usd"] == (row["cost_usd"] / 2).quantize(Decimal("0.000001"), "ROUND_HALF_UP")


def test_a_late_answer_restates_the_day_of_its_reservation(world: Callable[..., World]) -> None:
    """A cost belongs to the day it was reserved on, whenever it becomes known: reports must not depend on luck."""
    made = world(faults=[{"fault": "slow_task", "seconds": 3600}], task_deadline_s=1)
    made.catalogue("plain", rows(2))
    made.run()
    with made.workspace.ledger.database.write() as connection:
        connection.execute(schema.attempts.update().values(day="2026-03-01"))
    before = publish_cost_daily(made.workspace)
    assert (before.totals.cost_micros, before.totals.images) == (0, 0)
    assert before.totals.at_risk_micros > 0

    made.provider.advance(3600)
    made.run()
    assert summary(made.workspace).items == {"succeeded": 2}

    after = publish_cost_daily(made.workspace)
    assert list(after.by_day) == ["2026-03-01"]
    assert (after.totals.at_risk_micros, after.totals.images) == (0, 2)
    assert _usd(after.totals.cost_micros) == made.billed()


def test_waste_is_what_was_paid_and_is_of_no_use(world: Callable[..., World]) -> None:
    """The cost of an image in use is what a person budgets with: it must hold the failures' cost as well."""
    made = world(faults=[{"contains": "number 0", "fault": "text_only"}])
    made.catalogue("plain", rows(2))
    made.run()
    made.run(rerun=Rerun.REGENERATE)

    found = summary(made.workspace)

    attempts = made.workspace.tables.read("attempts").to_pylist()
    in_use = max(row["created_at"] for row in attempts if row["state"] == "stored")
    useful = sum(row["cost_usd"] for row in attempts if row["created_at"] == in_use and row["state"] == "stored")
    assert _usd(found.wasted_micros) == sum(row["cost_usd"] for row in attempts) - useful
    assert found.items == {"succeeded": 1, "failed": 1}
    assert found.failures == {"bad_output": 1}
    assert found.cost_per_image_micros == found.cost_micros


def test_a_summary_can_be_of_one_run_shard_or_catalogue(world: Callable[..., World]) -> None:
    """Dagster shows a shard's cost on that shard: with the whole cost on each, sums over shards would be nonsense."""
    made = world()
    made.catalogue("a", rows(2))
    made.catalogue("b", rows(3))
    made.run()
    made.catalogue("b", rows(4))
    made.run()

    workspace = made.workspace
    assert summary(workspace).items == {"succeeded": 6}
    assert summary(workspace, catalogue="a").items == summary(workspace, shard="a-000000").items == {"succeeded": 2}
    assert summary(workspace, run_scope="run-2").items == {"succeeded": 1}
    parts = [summary(workspace, run_scope=run).cost_micros for run in ("run-1", "run-2")]
    assert sum(parts) == summary(workspace).cost_micros
    assert summary(workspace).as_dict()["cost_usd"] == budget.usd(sum(parts))


def test_what_was_put_off_stands_beside_what_was_spent(world: Callable[..., World], ledger_url: str) -> None:
    """Whoever sees a campaign's costs must see that a third of it was not even tried, for want of room."""
    made = world(ledger_url=ledger_url, budget_usd=Decimal("0.30"), max_in_flight=1)
    made.catalogue("plain", rows(9, campaign=["a", None], style=["ink", "oil"]))
    made.run()

    # As the page gets it: the encoder refuses names that only look like plain ones.
    data = orjson.loads(orjson.dumps(cost_data(made.workspace)))

    put_off = summary(made.workspace).items["deferred"]
    assert 0 < put_off < 9
    assert {row["campaign"] for row in data["deferred"]} == {"a", None}
    assert sum(row["items"] for row in data["deferred"]) == put_off
    (style,) = data["labels"]
    assert sum(value["deferred"] for value in style["values"]) == put_off


def test_an_empty_ledger_makes_empty_reports(world: Callable[..., World]) -> None:
    """The first thing a new user may ask for is the report: that must not be a traceback."""
    made = world()

    report = publish_cost_daily(made.workspace)

    assert (report.rows, report.days) == (0, 0)
    assert summary(made.workspace).items == {}
    assert made.workspace.tables.read("cost_daily").num_rows == 0


def test_what_is_seen_in_passing_is_short_and_holds_no_markup_of_a_stranger(world: Callable[..., World]) -> None:
    """Metadata is kept in Dagster's event log for good, and campaigns are whatever a file says."""
    made = world()
    made.catalogue("plain", rows(30, campaign=[f"[x](javascript:alert({i}))|<b>" for i in range(30)]))
    made.run()

    report = publish_cost_daily(made.workspace)

    for markdown in (report.chart, report.table, *shard_tables(made.workspace, "plain-000000")):
        assert len(markdown) < INLINE_CHARS, "Dagster would hide it behind a link"
        assert "<b>" not in markdown
        assert "](" not in markdown
    assert "Simulated" in report.chart
    assert report.table.splitlines()[-1].endswith(" more in `cost_daily`")
    assert f"| {shown(report.totals.cost_micros)} | ████████████████ |" in report.chart


def test_money_is_rounded_half_up_and_shown_with_the_digits_that_matter() -> None:
    """Half a cent an image is five dollars a thousand: it must not be rounded away."""
    assert per_image(5, 2) == 3
    assert per_image(4, 3) == 1
    assert per_image(1, 0) is None
    assert [shown(micros) for micros in (0, 67_200, 1_005_000, 1_234_567_890)] == [
        "$0.00",
        "$0.0672",
        "$1.01",
        "$1,234.57",
    ]
    assert cell("a|b\n*c*") == "a&#124;b &#42;c&#42;"
    assert [bar(value, 16) for value in (0, 1, 8, 16)] == ["", "█", "█" * 8, "█" * 16]
    assert bar(1, 1_000_000) == "▏", "what is not nothing must be seen"


def test_totals_are_traceable_to_attempts(world: Callable[..., World]) -> None:
    """A figure that can't be taken apart into attempts can't be argued with the provider."""
    made = world(faults=FAULTS)
    made.catalogue("plain", rows(20, campaign=["a", "b"]))
    made.run()
    publish_cost_daily(made.workspace)

    for row in made.workspace.tables.read("cost_daily").to_pylist():
        attempts = sa.select(sa.func.sum(schema.attempts.c.cost_micros)).where(
            schema.attempts.c.day == row["day"].isoformat(), schema.attempts.c.campaign == row["campaign"]
        )
        with made.workspace.ledger.database.read() as connection:
            assert _usd(connection.execute(attempts).scalar_one()) == row["cost_usd"]


def _cost_of(made: World, prompt_id: str, attempt: int) -> int:
    found = made.workspace.tables.read("attempts", predicate={"prompt_id": prompt_id}).to_pylist()
    return next(int(row["cost_usd"] * 1_000_000) for row in found if row["attempt"] == attempt)


def _usd(micros: int) -> Decimal:
    return Decimal(micros).scaleb(-6)
