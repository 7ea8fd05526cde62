"""Every report on each kind of database: what SQLite takes for granted, PostgreSQL may refuse."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.reporting.approval import approve, save
from nanobanana_pipeline.reporting.contact_sheet import contact_sheet
from nanobanana_pipeline.reporting.cost_page import cost_data
from nanobanana_pipeline.reporting.export import export
from nanobanana_pipeline.reporting.pages import write_site
from nanobanana_pipeline.reporting.plan import plan
from nanobanana_pipeline.reporting.reconcile import reconcile
from nanobanana_pipeline_tests.reporting.conftest import World, rows

FAULTS = (
    {"contains": "number 1", "fault": "failed_billed"},
    {"contains": "number 2", "fault": "answer_lost"},
    {"contains": "number 3", "fault": "text_only"},
)


def test_every_report_works_on_each_database(world: Callable[..., World], ledger_url: str, tmp_path: Path) -> None:
    """A team on PostgreSQL sees the same report as one person with a file."""
    made = world(faults=FAULTS, ledger_url=ledger_url, max_attempts=1, budget_catalogue_usd=Decimal(5))
    things = rows(9, style=["ink", "oil", None], size=[1, 2])
    made.catalogue("one", things)
    approve(made.workspace, save(made.workspace, plan(made.workspace)).hash)
    made.run()
    things[0]["prompt"] = "edited"
    made.catalogue("one", things[:-1])
    made.run()
    invoice = tmp_path / "invoice.csv"
    lines = [f"{row['task_id']},{row['cost_usd']}" for row in made.provider.book if row["event"] == "billed"]
    invoice.write_text("\n".join(["task_id,cost", *lines]))

    reconciled = reconcile(made.workspace, invoice, correct=True)
    data = cost_data(made.workspace)
    site = write_site(made.workspace)
    exported = export(made.workspace, tmp_path / "out")
    sheet = contact_sheet(made.workspace)

    assert reconciled.corrected == 1
    assert {label["name"]: len(label["values"]) for label in data["labels"]} == {"style": 3, "size": 2}
    by_label = [sum(value["cost_micros"] for value in label["values"]) for label in data["labels"]]
    assert by_label == [data["totals"]["cost_micros"]] * 2
    assert {row["kind"] for row in data["failures"]} == {"provider_failure", "unknown_outcome", "bad_output"}
    assert {cap["kind"] for cap in data["caps"]} == {"day", "catalogue"}
    assert data["plans"][0]["to_make"] == 9
    assert sum(count for _, count in data["latencies"]["by_resolution"]["1K"]) == 7
    assert (site.items, site.images, exported.images, sheet.images) == (9, 6, 5, 5)


def test_labels_of_every_kind_are_told_on_each_database(world: Callable[..., World], ledger_url: str) -> None:
    """A NUL in one label ended the whole page on PostgreSQL; on SQLite true and false were told as 1 and 0."""
    made = world(ledger_url=ledger_url)
    made.catalogue("one", rows(2, word=["a\0b", "c"], yes=[True, False]))
    made.run()
    write_site(made.workspace)
    labels = {label["name"]: label["values"] for label in cost_data(made.workspace)["labels"]}
    assert {value["value"] for value in labels["yes"]} == {"true", "false"}
    assert [value["images"] for value in labels["word"]] == [1, 1]


def test_reports_do_without_the_files_of_an_adopted_image(
    world: Callable[..., World], ledger_url: str, tmp_path: Path
) -> None:
    """A ledger adopted from tables without `images` knows what was stored and not where: no report was written."""
    made = world(ledger_url=ledger_url)
    made.catalogue("one", rows(2))
    made.run()
    attempts = schema.attempts
    with made.workspace.ledger.posting() as postings:
        postings.execute(attempts.update().where(attempts.c.prompt_id == "p000").values(images=None))

    site, sheet = write_site(made.workspace), contact_sheet(made.workspace)
    exported = export(made.workspace, tmp_path / "out")

    assert (site.items, site.images, sheet.images, exported.images) == (2, 1, 1, 1)
