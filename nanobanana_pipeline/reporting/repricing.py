"""Restating costs after a price change: attempts that were priced by a list get the price that the lists say now.

What the provider or an invoice said stays. A price file that is given late (NANOBANANA_PRICES) so reaches back to the
work that was done before it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Any, Final

import orjson
import sqlalchemy as sa

from nanobanana_pipeline.generation.publishing import publish_shard
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline.model_specs.pricing import Cost, Usage, cost_of
from nanobanana_pipeline.reporting.costs import publish_cost_daily

_attempts = schema.attempts

_LISTED: Final = _attempts.c.cost_source == "price_list"
_A_TRANSACTION: Final = 500
"""Attempts corrected at once: running engines wait no longer than for one of their own commits."""
_PRICED: Final = (AttemptState.STORED.value, AttemptState.UNUSABLE.value, AttemptState.FAILED.value)


@dataclass(slots=True)
class Repricing:
    """How many attempts changed, and what they cost before and after (micro-dollars).

    `left` counts those that keep their price because nobody knows how many images they gave.
    """

    attempts: int = 0
    left: int = 0
    before_micros: int = 0
    after_micros: int = 0


def reprice(workspace: Workspace, *, on_progress: Callable[[int], None] | None = None) -> Repricing:
    """Price every closed attempt anew that a price list priced, and of whose day one is now; write what changed.

    `on_progress` is told how many attempts were looked at.
    """
    report = Repricing()
    shards: set[str] = set()
    changes = _changes(workspace, report, on_progress)
    while costs := dict(islice(changes, _A_TRANSACTION)):
        shards |= _enter(workspace, costs, report)
    for shard in sorted(shards):
        publish_shard(workspace, shard)
    if shards:
        publish_cost_daily(workspace)
    return report


def images_given(attempt: Any) -> int | None:
    """How many images an attempt's task gave; None when nobody knows.

    An attempt that was adopted from the tables has no addresses, and its files if they are the item's current ones. One
    that complains lacks an image, which was paid for all the same.
    """
    if attempt.urls is not None:
        return len(orjson.loads(attempt.urls))
    if attempt.state == AttemptState.FAILED:
        return 0
    return None if attempt.images is None or attempt.error_message else len(orjson.loads(attempt.images))


def _changes(
    workspace: Workspace, report: Repricing, on_progress: Callable[[int], None] | None
) -> Iterator[tuple[str, Cost]]:
    """The ids of attempts whose price is another now, with it."""
    query = (
        sa.select(_attempts)
        .where(
            _LISTED,
            _attempts.c.state.in_(_PRICED),
            _attempts.c.model == workspace.spec.name,
        )
        .order_by(_attempts.c.attempt_id)
        .limit(_A_TRANSACTION)
    )
    last, seen = "", 0
    while True:
        # A page at a time: a reader that stays open would be in the way of the corrections themselves.
        with workspace.ledger.database.read() as connection:
            rows = connection.execute(query.where(_attempts.c.attempt_id > last)).all()
        if not rows:
            return
        last = rows[-1].attempt_id
        seen += len(rows)
        if on_progress is not None:
            on_progress(seen)
        for row in rows:
            day = date.fromisoformat(row.day)
            if not any(prices.covers(day) for prices in workspace.spec.prices):
                continue  # a contract that begins today says nothing of last month
            images = images_given(row)
            if images is None:
                report.left += 1
                continue
            cost = _price(workspace, row, images, day)
            if (cost.micros, cost.price_version) != (row.cost_micros, row.price_version):
                yield row.attempt_id, cost


def _price(workspace: Workspace, row: Any, images: int, day: date) -> Cost:
    usage = Usage(row.prompt_tokens, row.completion_tokens, row.total_tokens)
    return cost_of(workspace.spec, usage, resolution=row.resolution, images=images, day=day)


def _enter(workspace: Workspace, costs: Mapping[str, Cost], report: Repricing) -> set[str]:
    """Enter the costs of attempts, counted in `report`; the shards that they are of."""
    # Looked at once more: what an invoice has said of one meanwhile stays.
    query = sa.select(_attempts.c.attempt_id, _attempts.c.cost_micros).where(_attempts.c.attempt_id.in_(costs), _LISTED)
    held = workspace.ledger.database.lock_rows(query.order_by(_attempts.c.attempt_id))

    def enter(postings: Postings) -> list[tuple[str, int, int]]:
        restated: list[tuple[str, int, int]] = []
        for row in postings.execute(held).all():
            cost = costs[row.attempt_id]
            shard = postings.correct(row.attempt_id, cost.micros, cost.source, cost.price_version)
            if shard is not None:
                restated.append((shard, row.cost_micros, cost.micros))
        return restated

    restated = workspace.ledger.post_alone(enter)
    report.attempts += len(restated)
    report.before_micros += sum(before for _, before, _ in restated)
    report.after_micros += sum(after for _, _, after in restated)
    return {shard for shard, _, _ in restated}
