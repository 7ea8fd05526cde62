"""Stories of items, runs and days that really happened: an incident must be understood without SQL."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.unknowns import decide, held_attempts
from nanobanana_pipeline.reporting.explain import explain
from nanobanana_pipeline_tests.reporting.conftest import World, rows

FAULTS = (
    {"contains": "number 1", "fault": "rate_limited_429", "times": 1},
    {"contains": "number 2", "fault": "failed", "times": 1},
    {"contains": "number 3", "fault": "refused_400_moderation"},
    {"contains": "number 4", "fault": "answer_lost"},
    {"contains": "number 5", "fault": "failed_billed", "code": 5001095},
    {"contains": "number 6", "fault": "image_html"},
)


@pytest.fixture
def eventful(world: Callable[..., World], ledger_url: str) -> World:
    """A run in which every kind of thing has happened, and a person's decision after it."""
    made = world(faults=FAULTS, ledger_url=ledger_url, max_attempts=2)
    made.catalogue("plain", rows(8))
    made.run()
    held = held_attempts(made.workspace.ledger)
    decide(made.workspace, held, "abandon")
    return made


def test_every_item_says_what_happened_to_it(eventful: World) -> None:
    """Each attempt, wait, retry, price and decision, and in the end why it stands as it does."""
    for prompt_id, status, sentences in (
        (
            "p000",
            "succeeded",
            ["has its image", "The provider took it", "by the price list google", "Checked and stored"],
        ),
        ("p001", "succeeded", ["It was sent 2 times: the provider refused the first 1 time"]),
        (
            "p002",
            "succeeded",
            ["2 attempts cost", "The task had failed: provider_failure", "after the one before, since"],
        ),
        (
            "p003",
            "failed",
            ["not tried again by itself", "The provider refused it, so nothing was billed: content_policy"],
        ),
        ("p004", "failed", ["is at risk: it may have been billed", "It was given up, by a person"]),
        ("p005", "failed", ["005001095", "none is booked"]),
        ("p006", "failed", ["though it was paid for: bad_output"]),
    ):
        story = explain(eventful.workspace.ledger, f"plain/{prompt_id}")
        told = "\n".join(story.lines)
        assert story.figures["status"] == status
        for sentence in sentences:
            assert sentence in told, f"{sentence!r} is not in\n{told}"


def test_an_item_is_found_by_whatever_name_is_at_hand(eventful: World) -> None:
    """A task's id from the provider's console, an attempt's from `unknown list`, or the item's own."""
    ledger = eventful.workspace.ledger
    story = explain(ledger, "plain/p000#1")
    (attempt,) = story.figures["attempts"]
    for name in (story.id, story.id[:10], attempt["attempt_id"][:24], attempt["task_id"]):
        assert explain(ledger, name).as_dict() == story.as_dict()


def test_a_run_and_its_day_add_up(eventful: World) -> None:
    """What the attempts came to, by cause, end, error and time: the same for a run and the only day that it was on."""
    ledger = eventful.workspace.ledger
    run = explain(ledger, "run-1")
    day = explain(ledger, explain(ledger, "plain/p000").figures["attempts"][0]["day"])
    assert run.figures == day.figures
    figures = run.as_dict()
    assert (figures["attempts"], figures["items"], figures["shards"]) == (9 + 1, 8, 1)
    assert figures["states"] == {"stored": 4, "failed": 3, "unusable": 1, "refused": 1, "abandoned": 1}
    assert figures["causes"] == {"new": 8, "retry": 2}
    assert figures["refused_submits"] == 1
    assert Decimal(figures["cost_usd"]) == sum(
        Decimal(attempt["cost_usd"])
        for number in range(8)
        for attempt in explain(ledger, f"plain/p00{number}").figures["attempts"]
    )
    told = "\n".join(run.lines)
    for sentence in ("plain/p003#1 failed: content_policy", "2 retries after the provider failed", "10 attempts begun"):
        assert sentence in told, told


def test_a_cost_of_nothing_says_who_said_so(eventful: World) -> None:
    """What an invoice took back was told as a cost that nobody had told."""
    ledger = eventful.workspace.ledger
    (attempt,) = explain(ledger, "plain/p000").figures["attempts"]
    with ledger.posting() as postings:
        postings.correct(attempt["attempt_id"], 0, "invoice")
    assert "it cost $0.00 as the invoice said" in "\n".join(explain(ledger, "plain/p000").lines)


def test_what_an_invoice_has_settled_waits_for_none(eventful: World) -> None:
    """Of an attempt that was given up, and billed after all, nothing was said to be at risk until an invoice comes."""
    ledger = eventful.workspace.ledger
    (attempt,) = explain(ledger, "plain/p004").figures["attempts"]
    with ledger.posting() as postings:
        postings.correct(attempt["attempt_id"], 68_000, "invoice")
    told = "\n".join(explain(ledger, "plain/p004").lines)
    assert "It was given up, by a person or the settings; it cost $0.0680 as the invoice said" in told
    assert "at risk" not in told


def test_what_is_not_there_is_said(eventful: World) -> None:
    """A person in the midst of an incident mistypes."""
    for name in (f"plain/p000#{'9' * 5000}", "plain/p099", "nothing-like-it", "ab", "2026-02-30"):
        with pytest.raises(UserError):
            explain(eventful.workspace.ledger, name)


def test_a_day_without_work_is_no_error(world: Callable[..., World]) -> None:
    """Whether anything was sent on a day is a question, and no is an answer."""
    story = explain(world().workspace.ledger, "2020-02-29")
    assert story.lines == ["2020-02-29 (UTC)", "  No attempt was made."]
