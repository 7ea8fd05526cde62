"""The provider's tasks: what is kept of each, and how the book brings them back after a restart."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from nanobanana_pipeline.simulator.billing import Row, as_seconds
from nanobanana_pipeline.simulator.faults import Strike, strike_from_row
from nanobanana_pipeline.simulator.outcomes import Outcome
from nanobanana_pipeline.simulator.validation import GenerationRequest


@dataclass(slots=True)
class Task:
    """One task. Times are simulated seconds since the epoch; `due` is infinite for a task that never ends.

    `chance` is what its random traits are drawn from. It is in the book, so they outlive a change of the seed.
    """

    id: str
    request: GenerationRequest
    fingerprint: str
    chance: str
    created: float
    due: float
    strikes: tuple[Strike, ...]
    idempotency_key: str | None
    outcome: Outcome | None = None
    polls: int = 0
    issues: int = 0

    @property
    def day(self) -> date:
        """The UTC day it was accepted on, whose prices it is billed at."""
        return datetime.fromtimestamp(self.created, UTC).date()

    def progress(self, now: float) -> float:
        """0 to 0.99, by the time that has passed."""
        whole = self.due - self.created
        return 0.99 if whole <= 0 else round(min(0.99, max(0.0, (now - self.created) / whole)), 2)


def new_task_id() -> str:
    """Twenty lower-case characters in the manner of the provider's ids."""
    return "d" + os.urandom(10).hex()[1:]


def task_from_row(row: Row) -> Task:
    """The task that an `accepted` row of the book tells of."""
    request: dict[str, Any] = row["request"]
    created = as_seconds(row["time"])
    latency = row["latency_s"]
    return Task(
        id=row["task_id"],
        request=GenerationRequest(
            model=row["model"],
            prompt=row["prompt"],
            image_urls=tuple(request["image_urls"]),
            aspect_ratio=request["aspect_ratio"],
            resolution=row["resolution"],
            response_modalities=tuple(request["response_modalities"]),
        ),
        fingerprint=row["fingerprint"],
        chance=row["chance"],
        created=created,
        due=float("inf") if latency is None else created + latency,
        strikes=tuple(strike_from_row(strike) for strike in row["faults"]),
        idempotency_key=row["idempotency_key"],
    )


def tasks_in(rows: Iterable[Row]) -> dict[str, tuple[Task, bool]]:
    """Every task in a book by its id, and whether the book has its end."""
    ended: set[str] = set()
    tasks: dict[str, Task] = {}
    for row in rows:
        if row["event"] == "accepted":
            tasks[row["task_id"]] = task_from_row(row)
        elif row["event"] in ("billed", "failed"):
            ended.add(row["task_id"])
    return {task.id: (task, task.id in ended) for task in tasks.values()}
