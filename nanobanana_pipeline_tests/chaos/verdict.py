"""What counts as a failure of a chaos round, checked against the provider's book, the ledger, the tables and the disk.

1. A request is billed more than once without a person having asked for it.
2. An image that was billed, and that the provider could deliver, is not on disk with its hash, or not in the tables.
3. A row stands twice in `results`, `attempts` or `images`.
4. An attempt's cost is not the book's, or a billed call is covered by neither a cost nor money at risk. (What is at
   risk is the price of the image that was asked for: nobody can foresee that the provider will make several.)
5. The budget counters are not the sums over the attempts.
6. An outcome is unknown whose submit was not in the air at a kill, and whose answer the provider did not lose.
7. An item of the ledger is not in `results`, or stands there as anything but an image or a reason: the provider has
   been well for a while, so what is in flight, overdue or deferred was forgotten.
8. A reader beside the run ever found a table that it could not read.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline_tests.chaos.faults import NOT_DELIVERABLE

_MORE_THAN_SHOWN = {"several_images", "no_output"}
"""Two images billed and none delivered: the answer's tokens can't tell, and only an invoice can."""
_SETTLED = {"succeeded", "failed", "unknown"}
_LOSES_ITS_ANSWER = {"answer_lost", "gateway_504", "no_id_200", "undecodable_200"}


@dataclass
class Verdict:
    """What a round came to."""

    failures: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)

    def fail(self, message: str) -> None:
        """Note a broken promise."""
        self.failures.append(message)


def judge(
    workspace: Workspace, book: list[dict[str, Any]], submits_in_the_air: Collection[str], *, finished: bool = True
) -> Verdict:
    """Hold a round against the provider's book.

    `submits_in_the_air` are the attempts that were being submitted at a kill. Unless all work was `finished`, items may
    wait for their first attempt.
    """
    verdict = Verdict()
    attempts = workspace.tables.read("attempts").to_pylist()
    results = workspace.tables.read("results").to_pylist()
    images = workspace.tables.read("images").to_pylist()
    _no_duplicates(verdict, attempts, results, images)
    _billed_once(verdict, book)
    _money(verdict, attempts, results, book)
    _counters(verdict, workspace, attempts)
    _images(verdict, workspace, attempts, images, book)
    _unknowns(verdict, attempts, book, submits_in_the_air)
    _accounted_for(verdict, workspace, results, attempts, finished=finished)
    verdict.figures["items"] = len(results)
    verdict.figures["attempts"] = len(attempts)
    verdict.figures["images"] = len(images)
    verdict.figures.update({f"results {row['status']}": 0 for row in results})
    verdict.figures.update(f"results {row['status']}" for row in results)
    return verdict


def _no_duplicates(
    verdict: Verdict, attempts: list[dict[str, Any]], results: list[dict[str, Any]], images: list[dict[str, Any]]
) -> None:
    keys = {
        "attempts": [row["attempt_id"] for row in attempts],
        "results": [row["item_id"] for row in results],
        "images": [(row["item_id"], row["n"]) for row in images],
    }
    for table, listed in keys.items():
        for key, times in Counter(listed).items():
            if times > 1:
                verdict.fail(f"{table}: {key} stands {times} times")


def _billed_once(verdict: Verdict, book: list[dict[str, Any]]) -> None:
    billed = Counter(row["prompt"] for row in book if row["event"] == "billed")
    verdict.figures["billed calls"] = sum(billed.values())
    for prompt, times in billed.items():
        if times > 1:
            verdict.fail(f"billed {times} times: {prompt}")
    accepted = Counter(row["idempotency_key"] for row in book if row["event"] == "accepted")
    for key, times in accepted.items():
        if times > 1:
            verdict.fail(f"attempt {key} became {times} tasks")


def _money(
    verdict: Verdict, attempts: list[dict[str, Any]], results: list[dict[str, Any]], book: list[dict[str, Any]]
) -> None:
    by_id = {row["attempt_id"]: row for row in attempts}
    billed = {row["idempotency_key"]: Decimal(row["cost_usd"]) for row in book if row["event"] == "billed"}
    images = {row["idempotency_key"]: max(1, row["images"]) for row in book if row["event"] == "billed"}
    undelivered = {
        row["idempotency_key"] for row in book if row["event"] == "accepted" and _faults(row) >= _MORE_THAN_SHOWN
    }
    for attempt_id, cost in billed.items():
        attempt = by_id.get(attempt_id)
        if attempt is None:
            verdict.fail(f"billed, and in no row: attempt {attempt_id}")
        elif attempt_id in undelivered and 0 < attempt["cost_usd"] < cost:
            verdict.figures["billed for more images than were shown"] += 1
        elif attempt["at_risk_usd"] == 0 and attempt["cost_usd"] != cost:
            verdict.fail(f"attempt {attempt_id} ({attempt['state']}) says {attempt['cost_usd']}, the book {cost}")
        elif attempt["at_risk_usd"] and attempt["at_risk_usd"] * images[attempt_id] < cost:
            verdict.fail(f"attempt {attempt_id}: {cost} billed, only {attempt['at_risk_usd']} at risk")
    for attempt_id, attempt in by_id.items():
        if attempt["cost_usd"] and attempt_id not in billed:
            verdict.fail(f"attempt {attempt_id} says {attempt['cost_usd']}, and was never billed")
    spent = sum((row["cost_usd"] for row in attempts), Decimal(0))
    if spent != sum((row["cost_usd"] for row in results), Decimal(0)):
        verdict.fail("results and attempts disagree on the total cost")


def _counters(verdict: Verdict, workspace: Workspace, attempts: list[dict[str, Any]]) -> None:
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in attempts:
        for scope in (f"day:{row['created_at']:%Y-%m-%d}", f"catalogue:{row['catalogue']}"):
            sums[scope][0] += int(row["cost_usd"].scaleb(6))
            sums[scope][1] += int(row["at_risk_usd"].scaleb(6))
    for scope, held in workspace.ledger.counters().items():
        if held.reserved:
            verdict.fail(f"counter {scope}: {held.reserved} still reserved, and nothing is open")
        if not scope.startswith("run:") and [held.spent, held.at_risk] != sums[scope]:
            verdict.fail(f"counter {scope} holds {held}, the attempts add up to {sums[scope]}")


def _images(
    verdict: Verdict,
    workspace: Workspace,
    attempts: list[dict[str, Any]],
    images: list[dict[str, Any]],
    book: list[dict[str, Any]],
) -> None:
    for row in images:
        try:
            data = workspace.images.read(row["path"])
        except FileNotFoundError:
            verdict.fail(f"no file for {row['path']}")
            continue
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            verdict.fail(f"not the bytes that were stored: {row['path']}")
    pictured = {row["item_id"] for row in images}
    item_of = {row["attempt_id"]: row["item_id"] for row in attempts}
    held = {row["attempt_id"] for row in attempts if row["state"] in {"unknown", "overdue"}}
    hopeless = {row["idempotency_key"] for row in book if row["event"] == "accepted" and NOT_DELIVERABLE & _faults(row)}
    for row in book:
        key = row["idempotency_key"] if row["event"] == "billed" else None
        if key and key not in hopeless | held and item_of.get(key) not in pictured:
            verdict.fail(f"billed and deliverable, and no image: attempt {key} ({row['prompt']})")


def _unknowns(
    verdict: Verdict, attempts: list[dict[str, Any]], book: list[dict[str, Any]], submits_in_the_air: Collection[str]
) -> None:
    unknown = {row["attempt_id"] for row in attempts if row["state"] == "unknown"}
    by_fault = {
        row["idempotency_key"] for row in book if row["event"] == "accepted" and _LOSES_ITS_ANSWER & _faults(row)
    }
    by_kill = unknown - by_fault
    verdict.figures["unknown by a lost answer"] = len(unknown & by_fault)
    verdict.figures["unknown by a kill"] = len(by_kill)
    verdict.figures["submits in the air at the kills"] = len(submits_in_the_air)
    for attempt_id in by_kill.difference(submits_in_the_air):
        verdict.fail(f"attempt {attempt_id} is of unknown outcome, and nothing happened to its answer")


def _accounted_for(
    verdict: Verdict,
    workspace: Workspace,
    results: list[dict[str, Any]],
    attempts: list[dict[str, Any]],
    *,
    finished: bool,
) -> None:
    with workspace.ledger.database.read() as connection:
        entered = set(connection.execute(sa.select(schema.items.c.item_id)).scalars())
    shown = {row["item_id"] for row in results}
    if entered != shown:
        verdict.fail(f"{len(entered - shown)} items are not in results, and {len(shown - entered)} only there")
    for row in results:
        if row["status"] in _SETTLED or (row["status"] == "pending" and not finished):
            continue
        verdict.fail(f"item {row['prompt_id']} ended as {row['status']}: {row['error_message']}")
    for row in results:
        if row["status"] == "failed" and not (row["error_kind"] and row["error_message"]):
            verdict.fail(f"item {row['prompt_id']} failed for no reason")
    for attempt in attempts:
        if attempt["state"] == "overdue":
            verdict.fail(f"attempt {attempt['attempt_id']} is overdue, though its task has ended")


def _faults(row: dict[str, Any]) -> set[str]:
    return {fault["fault"] for fault in row["faults"]}
