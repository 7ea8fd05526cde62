"""Asset checks: what must hold of the tables and files that were just written, and what a person should look at.

They run inside the step that writes or observes, over exactly what it saw, so that each shard has a verdict of its own.
An error means that whoever reads on would read something wrong; a warning means that someone should look.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Self

import dagster as dg
import pyarrow.compute as pc
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.publishing import Row
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.shard_facts import items_in
from nanobanana_pipeline.orchestration import previews
from nanobanana_pipeline.orchestration.metadata import counts_table, markdown_table
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.reporting.reconcile import Status
from nanobanana_pipeline.storage.images import ImageStore
from nanobanana_pipeline.storage.tables import Tables

MAX_ERROR_RATE: Final = 0.1
HASHED_FILES: Final = 200
"""Files of a shard whose content is hashed: reading all of a large shard would take longer than writing its tables."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is looked at on an asset, before it has its place in a pipeline."""

    name: str
    asset: str
    description: str
    blocking: bool = False
    of_shards: bool = True

    def spec(self, names: Names) -> dg.AssetCheckSpec:
        """The check of one pipeline."""
        # Without partitions of their own, the verdict on one shard would hide that on another.
        with previews.accepted():
            return dg.AssetCheckSpec(
                self.name,
                asset=names.key(self.asset),
                blocking=self.blocking,
                partitions_def=names.partitions if self.of_shards else None,
                description=self.description,
            )


EVERY_ITEM_HAS_A_ROW: Final = Check(
    "every_item_has_a_row",
    asset="results",
    blocking=True,
    description="Each item of the shard in the ledger has exactly one row in `results`: every prompt is accounted for.",
)
COSTS_AGREE: Final = Check(
    "costs_agree",
    asset="attempts",
    blocking=True,
    description="The shard's money and tokens are the same, to the micro-dollar, in `results` and in `attempts`.",
)
FILES_EXIST: Final = Check(
    "files_exist",
    asset="images",
    description="Every image file of the shard is on disk with its size, and holds the bytes of its SHA-256. The "
    f"content of up to {HASHED_FILES} files is hashed, taken evenly from the shard: of all, in smaller ones.",
)
FEW_ERRORS: Final = Check(
    "few_errors",
    asset="results",
    description=f"At most {MAX_ERROR_RATE:.0%} of the shard's items have failed. What failed, and why, is listed by "
    "kind.",
)
NO_UNKNOWN_OUTCOMES: Final = Check(
    "no_unknown_outcomes",
    asset="results",
    description="No item was sent without an answer. Such an item may have been billed, so it is never sent again by "
    "itself: a person decides, with `nanobanana unknown` or the run's `resubmit_unknown`.",
)
NO_REJECTED_PROMPTS: Final = Check(
    "no_rejected_prompts",
    asset="rejected_prompts",
    of_shards=False,
    description="Every row of the catalogues can be generated. Rejected rows are listed with what is wrong with them.",
)

INVOICES_AGREE: Final = Check(
    "invoices_agree",
    asset="reconciliation",
    of_shards=False,
    description="Every line of every invoice that was held against the books has its attempt and the same amount, and "
    "no paid attempt of its period is missing on it. What drifts is listed, the largest differences first: take it up "
    "with the provider, or give the invoice the last word with `nanobanana reconcile INVOICE.csv --correct`.",
)

SHARD_CHECKS: Final = (EVERY_ITEM_HAS_A_ROW, COSTS_AGREE, FILES_EXIST, FEW_ERRORS, NO_UNKNOWN_OUTCOMES)


_RESULT_COLUMNS: Final = (
    *("item_id", "prompt_id", "sample", "active", "status", "task_id"),
    *("cost_usd", "at_risk_usd", "total_tokens", "error_kind", "error_code", "error_message"),
)
_IMAGE_COLUMNS: Final = ("prompt_id", "sample", "path", "bytes", "sha256")
_INVOICE_COLUMNS: Final = (
    *("invoice", "source_line", "status", "task_id", "day"),
    *("invoice_usd", "ledger_usd", "difference_usd", "note"),
)
_SUMS: Final = ("cost_usd", "at_risk_usd", "total_tokens")
_ATTEMPT_COLUMNS: Final = ("item_id", "prompt_id", "sample", *_SUMS)
_SHOWN: Final = 50
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class ShardTables:
    """A shard's rows as they were just written, in the columns that checks look at."""

    results: list[Row]
    images: list[Row]
    attempts: list[Row]

    @classmethod
    def read(cls, tables: Tables, shard: str) -> Self:
        """Read them back."""
        columns = {"results": _RESULT_COLUMNS, "images": _IMAGE_COLUMNS, "attempts": _ATTEMPT_COLUMNS}
        return cls(
            **{name: tables.read(name, wanted, {"shard": shard}).to_pylist() for name, wanted in columns.items()}
        )


def check_shard(workspace: Workspace, shard: str, written: ShardTables) -> list[dg.AssetCheckResult]:
    """All the verdicts on a shard, one for each of `SHARD_CHECKS`."""
    with workspace.ledger.database.read() as connection:
        items = items_in(connection, shard)
    return [
        every_item_has_a_row(written.results, items),
        costs_agree(written.results, written.attempts),
        files_exist(workspace.images, written.images),
        few_errors(written.results),
        no_unknown_outcomes(written.results),
    ]


def every_item_has_a_row(results: Sequence[Row], items: Mapping[str, tuple[str, int]]) -> dg.AssetCheckResult:
    """Whether each item (by id, with prompt_id and sample) has exactly one row, and no other has any."""
    rows = Counter(row["item_id"] for row in results)
    names = {row["item_id"]: (row["prompt_id"], row["sample"]) for row in results} | dict(items)
    wrong = {
        **dict.fromkeys(items.keys() - rows.keys(), "in the ledger, without a row"),
        **dict.fromkeys(rows.keys() - items.keys(), "a row, but not in the ledger"),
        **{item: f"{count} rows" for item, count in rows.items() if count > 1 and item in items},
    }
    return _verdict(
        EVERY_ITEM_HAS_A_ROW,
        passed=not wrong,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "items": len(items),
            "rows": len(results),
            "wrong": markdown_table(
                ("prompt_id", "sample", "what is wrong", "item_id"),
                sorted((*names[item], what, item) for item, what in wrong.items()),
                numbers=0,
            ),
        },
    )


def costs_agree(results: Sequence[Row], attempts: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether the sums of both tables are the same."""
    sums = [(name, _sum(results, name), _sum(attempts, name)) for name in _SUMS]
    return _verdict(
        COSTS_AGREE,
        passed=all(one == other for _, one, other in sums),
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "sums": markdown_table(("sum of", "results", "attempts"), sums, numbers=2),
            "differing": markdown_table(
                ("prompt_id", "sample", "sum of", "results", "attempts"), _differing(results, attempts), numbers=2
            ),
        },
    )


def _differing(results: Sequence[Row], attempts: Sequence[Row]) -> list[tuple[Any, ...]]:
    """The items that are to blame, with their sums in both tables."""
    rows: dict[str, tuple[list[Row], list[Row]]] = {}
    for side, table in enumerate((results, attempts)):
        for row in table:
            rows.setdefault(row["item_id"], ([], []))[side].append(row)
    return [
        (*((ours or theirs)[0][key] for key in ("prompt_id", "sample")), name, _sum(ours, name), _sum(theirs, name))
        for ours, theirs in rows.values()
        for name in _SUMS
        if _sum(ours, name) != _sum(theirs, name)
    ]


def verdicts_on(asset: str, names: Names, verdicts: Iterable[dg.AssetCheckResult]) -> list[dg.AssetCheckResult]:
    """Those that are about this asset, as the pipeline calls it."""
    about = {check.name for check in SHARD_CHECKS if check.asset == asset}
    return [verdict._replace(asset_key=names.key(asset)) for verdict in verdicts if verdict.check_name in about]


def refuse_wrong_tables(instance: dg.DagsterInstance, names: Names) -> None:
    """Raise `UserError` while the latest verdict of a blocking check on some shard is that its tables are wrong.

    A failed blocking check only ends its own run; whatever reads the tables in another run has to ask for itself.
    """
    keys = [check.spec(names).key for check in SHARD_CHECKS if check.blocking]
    failed = {
        (info.partition_key or "", info.check_key.name)
        for info in instance.event_log_storage.get_asset_check_partition_info(keys)
        if info.latest_execution_status is AssetCheckExecutionRecordStatus.FAILED
    }
    if failed:
        shards = sorted({shard for shard, _ in failed})
        wrong = ", ".join(sorted({name for _, name in failed}))
        more = " …" if len(shards) > _NAMED else ""
        raise UserError(
            f"the tables don't agree with the ledger for {', '.join(shards[:_NAMED])}{more} (failed: {wrong}): "
            "materialise those shards again, which pays for nothing that is there, and then this"
        )


def files_exist(store: ImageStore, images: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether the files are what the table says."""
    absent = [row for row in images if not store.exists(row["path"], row["bytes"])]
    paths = {row["path"] for row in absent}
    hashed = [row for row in _evenly(images, HASHED_FILES) if row["path"] not in paths]
    changed = [row for row in hashed if not store.matches(row["path"], row["sha256"])]
    wrong = [(row, "missing, or of another size") for row in absent] + [(row, "other content") for row in changed]
    return _verdict(
        FILES_EXIST,
        passed=not wrong,
        metadata={
            "files": len(images),
            "hashed": len(hashed),
            "wrong": markdown_table(
                ("prompt_id", "sample", "file", "what is wrong"),
                [(row["prompt_id"], row["sample"], row["path"], what) for row, what in wrong],
                numbers=0,
            ),
        },
    )


def few_errors(results: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether few of the items in the catalogue that have come to an end have failed."""
    failed = _active(results, "failed")
    ended = len(failed) + len(_active(results, "succeeded"))
    rate = len(failed) / ended if ended else 0.0
    return _verdict(
        FEW_ERRORS,
        passed=rate <= MAX_ERROR_RATE,
        metadata={
            "error_rate": rate,
            "failed": len(failed),
            "ended": ended,
            "by_kind": counts_table(("kind", "items"), Counter(row["error_kind"] or "unexplained" for row in failed)),
            "failed_items": _listing(failed, ("prompt_id", "sample", "error_kind", "error_code", "error_message")),
        },
    )


def no_unknown_outcomes(results: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether every item's outcome is known."""
    # Removed items count too: what they were sent for may have been billed.
    unknown = [row for row in results if row["status"] == "unknown"]
    return _verdict(
        NO_UNKNOWN_OUTCOMES,
        passed=not unknown,
        metadata={
            "unknown": len(unknown),
            "at_risk_usd": float(_sum(unknown, "at_risk_usd")),
            "items": _listing(unknown, ("prompt_id", "sample", "task_id", "at_risk_usd", "error_message", "item_id")),
        },
    )


def rejected_prompts(tables: Tables) -> dg.AssetCheckResult:
    """Whether no row of any catalogue was rejected."""
    columns = ("catalogue", "file", "row_number", "rule", "column_name", "value", "message")
    rejected = tables.read("rejected_prompts", columns)
    rules: list[str] = rejected["rule"].to_pylist()
    return _verdict(
        NO_REJECTED_PROMPTS,
        passed=not rules,
        metadata={
            "rejected": len(rules),
            "by_rule": counts_table(("rule", "rows"), Counter(rules)),
            "rows": _listing(rejected.slice(0, _SHOWN).to_pylist(), columns, of=len(rules)),
        },
    )


def invoices_agree(tables: Tables) -> dg.AssetCheckResult:
    """Whether no line of any invoice drifts from the books."""
    drift = pc.field("status") != Status.MATCHED.value
    rows: list[Row] = tables.read("reconciliation", _INVOICE_COLUMNS, drift).to_pylist()
    rows.sort(key=lambda row: -abs(row["difference_usd"] or 0))
    by_status = Counter((row["invoice"], row["status"]) for row in rows)
    return _verdict(
        INVOICES_AGREE,
        passed=not rows,
        metadata={
            "drifting": len(rows),
            "difference_usd": float(_sum(rows, "difference_usd")),
            "by_status": markdown_table(
                ("invoice", "status", "lines"), [(*key, count) for key, count in sorted(by_status.items())]
            ),
            "rows": _listing(rows, _INVOICE_COLUMNS),
        },
    )


def _verdict(
    check: Check,
    *,
    passed: bool,
    metadata: dict[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=passed, check_name=check.name, severity=severity, metadata=metadata)


def _active(results: Iterable[Row], status: str) -> list[Row]:
    """Items with this status that are still in their catalogue."""
    return [row for row in results if row["active"] and row["status"] == status]


def _sum(rows: Iterable[Row], column: str) -> Decimal:
    return sum((Decimal(row[column] or 0) for row in rows), Decimal(0))


def _evenly(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """At most so many rows, from all over."""
    return rows[:: max(1, -(-len(rows) // most))]


def _listing(rows: Sequence[Row], columns: Sequence[str], *, of: int | None = None) -> dg.MarkdownMetadataValue:
    shown = [[row[name] for name in columns] for row in rows[:_SHOWN]]
    table = markdown_table(columns, shown, numbers=0).value
    more = (len(rows) if of is None else of) - len(shown)
    return dg.MetadataValue.md(f"{table}\n\nand {more:,} more: see the table" if more else table)
