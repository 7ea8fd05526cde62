"""Every place that shows money says the same, whatever happened: the promise of docs/costs.md."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nanobanana_pipeline_tests.reporting.agreement import FAULTS, known_faults, story
from nanobanana_pipeline_tests.reporting.conftest import World

_SUBJECTS = (
    *("a robot", "the Eiffel tower", "two owls", "an old clock", "a yellow tiger", "one small house", "a ship"),
    *("tea", "a violin", "three pears", "a map of Mars", "a glass frog", "snow", "a violet ladder", "the number seven"),
)
_PLACES = ("on a hill", "in the rain", "made of paper", "as an oil painting", "under a full moon", "beside a wide road")
_CATEGORIES = ("Animals", "Abstract", "Outdoor Scenes", "Artifacts", "Food & Beverage")


def _prompts(count: int) -> Iterator[dict[str, Any]]:
    """A catalogue of the kind that people have: categories, campaigns, sizes, some prompts wanted twice."""
    for i in range(count):
        yield {
            "prompt_id": f"p-{i:04}",
            "prompt": f"{_SUBJECTS[i % len(_SUBJECTS)]} {_PLACES[i // 3 % len(_PLACES)]}, number {i}",
            "category": _CATEGORIES[i % len(_CATEGORIES)],
            "challenge": ("Basic", "Quantity", "Style & Format")[i % 3],
            "campaign": ("spring", "autumn", None)[i // 40 % 3],
            "resolution": ("0.5K", "1K", None, "2K")[i % 4],
            "samples": 2 if i % 12 == 0 else 1,
        }


@pytest.mark.slow
def test_every_place_says_the_same_to_the_micro_dollar(world: Callable[..., World], ledger_url: str) -> None:
    """Dashboards that do not match the invoice are what users of every peer complain of."""
    # Nobody but an invoice tells of this one, and so few prompts may not meet it by chance.
    faults = (*FAULTS, {"fault": "failed_billed", "contains": "number 77"})
    made = world(faults=faults, ledger_url=ledger_url, task_deadline_s=2, shard_size=100)

    steps = list(story(made, "prompts", list(_prompts(240))))

    for seen in steps:
        # `money` raises when places differ. What the provider has billed beyond it, its invoice shows line by line.
        assert seen.billed - seen.money.spent == known_faults(seen), seen.step
    first, edited, late, corrected = steps
    assert len(first.places) == 14
    assert first.attempts["overdue"] > 0
    assert first.attempts["unknown"] > 0
    assert first.billed > first.money.spent > 0
    assert edited.money.spent > first.money.spent
    assert late.attempts["overdue"] == 0
    assert late.money.spent > edited.money.spent
    assert late.money.at_risk < edited.money.at_risk
    assert corrected.money.spent > late.money.spent
    # What is left is of requests whose answer was lost: no attempt here has their tasks.
    assert {status for status, count in corrected.reconciliation.counts.items() if count} == {
        "matched",
        "duplicate",
        "only_invoice",
    }
