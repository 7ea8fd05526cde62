"""What each check finds and shows: a check that can't fail is worth nothing."""

from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from nanobanana_pipeline.orchestration import checks
from nanobanana_pipeline.storage.images import ImageStore
from nanobanana_pipeline.storage.tables import Tables


def result(prompt_id: str = "p", status: str = "succeeded", **columns: Any) -> dict[str, Any]:
    """A row of `results`, in the columns that checks look at."""
    return {
        "item_id": f"item-{prompt_id}",
        "prompt_id": prompt_id,
        "sample": 1,
        "active": True,
        "status": status,
        "task_id": None,
        "cost_usd": Decimal("0.045"),
        "at_risk_usd": Decimal(0),
        "total_tokens": 1120,
        "error_kind": None,
        "error_code": None,
        "error_message": None,
        **columns,
    }


def shown(verdict: dg.AssetCheckResult, label: str) -> str:
    """A table in the check's metadata."""
    value = verdict.metadata[label]
    assert isinstance(value, dg.MarkdownMetadataValue)
    return value.value


def test_an_item_without_a_row_is_an_error() -> None:
    """A prompt that nobody can account for is the one thing that must never happen."""
    items = {"item-a": ("a", 1), "item-b": ("b", 1)}
    assert checks.every_item_has_a_row([result("a"), result("b")], items).passed
    for names, wrong in (
        ("a", "| b | 1 | in the ledger, without a row | item-b |"),
        ("aab", "| a | 1 | 2 rows | item-a |"),
        ("abc", "| c | 1 | a row, but not in the ledger | item-c |"),
    ):
        verdict = checks.every_item_has_a_row([result(name) for name in names], items)
        assert not verdict.passed
        assert verdict.severity is dg.AssetCheckSeverity.ERROR
        assert wrong in shown(verdict, "wrong")


def test_a_micro_dollar_of_difference_is_an_error() -> None:
    """A dashboard that doesn't match the bill is not believed again."""
    results = [result("a"), result("b", cost_usd=Decimal("0.010001"))]
    attempts = [result("a", at_risk_usd=None), result("b", cost_usd=Decimal("0.010001"))]
    assert checks.costs_agree(results, attempts).passed
    verdict = checks.costs_agree(results, [attempts[0], result("b", cost_usd=Decimal("0.010000"))])
    assert not verdict.passed
    assert "0.055001 | 0.055000" in shown(verdict, "sums")
    differing = shown(verdict, "differing")
    assert "| b | 1 |" in differing
    assert "| 0.010001 | 0.010000 |" in differing
    assert "| a |" not in differing


def test_files_that_are_missing_short_or_changed_are_found_and_named(tmp_path: Path) -> None:
    """A row of a table is a claim; people move and edit files."""
    store = ImageStore(tmp_path)
    rows: list[dict[str, Any]] = []
    for name, content in {"good": b"good", "gone": b"gone", "short": b"short", "other": b"other"}.items():
        store.write(f"images/{name}.png", content)
        digest = sha256(content).hexdigest()
        rows.append(
            {"prompt_id": name, "sample": 1, "path": f"images/{name}.png", "bytes": len(content), "sha256": digest}
        )
    assert checks.files_exist(store, rows).passed
    (tmp_path / "images/gone.png").unlink()
    (tmp_path / "images/short.png").write_bytes(b"sh")
    (tmp_path / "images/other.png").write_bytes(b"OTHER")
    verdict = checks.files_exist(store, rows)
    assert not verdict.passed
    for name in ("gone", "short", "other"):
        assert f"images/{name}.png" in shown(verdict, "wrong")
    assert "images/good.png" not in shown(verdict, "wrong")


def test_hashing_is_bounded_and_spread_over_the_shard() -> None:
    """A shard of 100,000 images can't be read again in whole, and its end must not go unlooked at."""
    rows = [{"n": n} for n in range(1001)]
    chosen = [row["n"] for row in checks._evenly(rows, checks.HASHED_FILES)]
    assert 150 < len(chosen) <= checks.HASHED_FILES
    assert chosen[-1] > 990
    assert checks._evenly(rows[:200], checks.HASHED_FILES) == rows[:200]
    assert checks._evenly([], checks.HASHED_FILES) == []


def test_many_failures_are_a_warning_that_lists_them() -> None:
    """People must see what failed and why without writing SQL."""
    good = [result(f"g{n}") for n in range(9)]
    failed = result("bad", "failed", error_kind="content_policy", error_message="moderation | refused <b>it</b>")
    assert checks.few_errors([*good, failed]).passed
    verdict = checks.few_errors([*good[:8], failed])
    assert not verdict.passed
    assert verdict.severity is dg.AssetCheckSeverity.WARN
    assert "content&#95;policy | 1" in shown(verdict, "by_kind")
    # What a provider says is text: it must end neither the cell nor, as markup, anything else.
    assert "moderation &#124; refused &#60;b&#62;it" in shown(verdict, "failed_items")


def test_items_that_wait_or_are_gone_say_nothing_about_the_error_rate() -> None:
    """A shard that is hardly begun has no rate yet; one removed from the catalogue is nobody's concern."""
    waiting = [result(f"w{n}", "pending") for n in range(5)]
    removed = result("removed", "failed", active=False)
    verdict = checks.few_errors([*waiting, removed])
    assert verdict.passed
    assert verdict.metadata["error_rate"].value == 0.0


def test_unknown_outcomes_are_listed_with_their_money_even_of_removed_items() -> None:
    """They may have been billed, whether the row is still in the catalogue or not."""
    assert checks.no_unknown_outcomes([result()]).passed
    lost = result("lost", "unknown", active=False, at_risk_usd=Decimal("0.151"), cost_usd=None)
    verdict = checks.no_unknown_outcomes([result(), lost])
    assert not verdict.passed
    assert verdict.metadata["at_risk_usd"].value == 0.151
    assert "item-lost" in shown(verdict, "items")


def test_invoices_that_drift_are_a_warning_that_lists_the_lines(tmp_path: Path) -> None:
    """A provider that bills something else than the books say is found by whoever looks, and nobody looks unasked."""
    tables = Tables(tmp_path)

    def line(number: int, status: str, invoice: str, ledger: str) -> dict[str, Any]:
        money = Decimal(invoice), Decimal(ledger)
        return {
            "invoice": "may.csv",
            "source_line": number,
            "task_id": f"task-{number}",
            "status": status,
            "invoice_usd": money[0],
            "ledger_usd": money[1],
            "difference_usd": money[0] - money[1],
            "note": "billed | <b>all the same</b>" if status == "amount_differs" else None,
        }

    assert checks.invoices_agree(tables).passed, "before any invoice"
    good = line(1, "matched", "0.067200", "0.067200")
    tables.append("reconciliation", pa.Table.from_pylist([good]))
    assert checks.invoices_agree(tables).passed
    drifting = [line(2, "only_invoice", "0.01", "0"), line(3, "amount_differs", "0.10", "0")]
    tables.append("reconciliation", pa.Table.from_pylist(drifting))

    verdict = checks.invoices_agree(tables)

    assert not verdict.passed
    assert verdict.severity is dg.AssetCheckSeverity.WARN
    assert (verdict.metadata["drifting"].value, verdict.metadata["difference_usd"].value) == (2, 0.11)
    rows = shown(verdict, "rows").splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["3", "2"], "the largest difference first"
    assert "billed &#124; &#60;b&#62;all the same" in rows[0]
    assert "| may.csv | only&#95;invoice | 1 |" in shown(verdict, "by_status")


def test_a_long_list_is_cut_and_counted() -> None:
    """Metadata stays in the event log for good: a million failures must not be listed there."""
    verdict = checks.few_errors([result(f"f{n}", "failed", error_kind="bad_output") for n in range(1000)])
    assert len(shown(verdict, "failed_items")) < 10_000
    assert "and 950 more" in shown(verdict, "failed_items")
