"""Commands that change the books while a run does: PostgreSQL ends one of two that each hold what the other wants.

It was the command that was ended, with a report of a defect to send in; a run makes its own postings again.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from nanobanana_pipeline.generation.adoption import adopt_tables
from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.unknowns import decide, held_attempts
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline.reporting.costs import summary
from nanobanana_pipeline.reporting.reconcile import reconcile
from nanobanana_pipeline.reporting.repricing import reprice
from nanobanana_pipeline_tests.ledger.books import beside_a_worker, late_to_look_for_deadlocks
from nanobanana_pipeline_tests.reporting.conftest import HALF_PRICE, World, rows

FAULTS = tuple({"contains": f"number {n}", "fault": "answer_lost"} for n in (0, 1))

_attempts = schema.attempts
_CAPS = sa.select(schema.budget).order_by(schema.budget.c.scope).with_for_update()
_EVERY_ATTEMPT = _attempts.update().values(polls=_attempts.c.polls)

pytestmark = pytest.mark.postgres


@pytest.fixture
def made(world: Callable[..., World], postgres_url: str) -> World:
    """Four items, two of them of unknown outcome, and the ledger on PostgreSQL."""
    made = world(faults=FAULTS, ledger_url=late_to_look_for_deadlocks(postgres_url))
    made.catalogue("one", rows(4))
    made.run()
    return made


def assert_counted_once(made: World) -> None:
    """The caps' counters say what the attempts do."""
    found = summary(made.workspace)
    counters = made.workspace.ledger.counters()
    held = [counter for scope, counter in counters.items() if scope.startswith("day:")]
    assert sum(counter.spent for counter in held) == found.cost_micros
    assert sum(counter.at_risk for counter in held) == found.at_risk_micros


def test_an_invoice_corrects_beside_a_run(made: World, tmp_path: Path) -> None:
    """It holds attempts and wants the caps' counters; a run that admits has the counters, and moves attempts next."""
    tasks = [row["task_id"] for row in made.workspace.tables.read("attempts").to_pylist() if row["task_id"]]
    (tmp_path / "may.csv").write_text("\n".join(["id,amount", *(f"{task},0.01" for task in tasks)]))

    report = beside_a_worker(
        made.workspace.ledger,
        lambda: reconcile(made.workspace, tmp_path / "may.csv", correct=True),
        _CAPS,
        _EVERY_ATTEMPT,
    )

    assert (report.corrected, report.ok) == (2, True)
    assert summary(made.workspace).cost_micros == 20_000
    assert_counted_once(made)


def test_prices_are_restated_beside_a_run(made: World) -> None:
    """The same; and what it tells of it is not told twice over."""
    before = summary(made.workspace).cost_micros
    (made.folder / "prices.toml").write_text(HALF_PRICE)
    settings = made.workspace.settings.model_copy(update={"prices": str(made.folder / "prices.toml")})

    with made.elsewhere(settings) as workspace:
        report = beside_a_worker(workspace.ledger, lambda: reprice(workspace), _CAPS, _EVERY_ATTEMPT)

    assert (report.attempts, report.before_micros) == (2, before)
    assert report.after_micros == summary(made.workspace).cost_micros < before
    assert_counted_once(made)


@pytest.mark.parametrize("answered", [False, True], ids=["still_unknown", "answered_meanwhile"])
def test_a_person_decides_beside_a_run(made: World, answered: bool) -> None:  # noqa: FBT001 - pytest's own names
    """It goes through attempts by age, a run moves them as their late answers come."""
    ledger = made.workspace.ledger
    held = held_attempts(ledger)
    first, last = held[0].attempt_id, held[-1].attempt_id
    answer = {"state": AttemptState.REFUSED.value, "at_risk_micros": 0} if answered else {"polls": 1}

    decided = beside_a_worker(
        ledger,
        lambda: decide(made.workspace, held, "abandon"),
        _attempts.update().where(_attempts.c.attempt_id == last).values(polls=1),
        _attempts.update().where(_attempts.c.attempt_id == first).values(answer),
    )

    assert decided.attempts == (1 if answered else 2)
    states = {row["attempt_id"]: row["state"] for row in made.workspace.tables.read("attempts").to_pylist()}
    assert states[last] == AttemptState.ABANDONED
    assert held[-1].state is AttemptState.ABANDONED
    assert held[0].state is (AttemptState.UNKNOWN if answered else AttemptState.ABANDONED)


def test_tables_are_adopted_beside_a_catalogue_of_the_same_prompts(
    world: Callable[..., World], postgres_url: str
) -> None:
    """Requests are entered by their hashes, whoever's they are; two that enter the same ones wait for each other."""
    made = world()
    made.catalogue("one", rows(4))
    made.run()
    hash_of = {row["item_id"]: row["request_hash"] for row in made.workspace.tables.read("attempts").to_pylist()}
    shown = [row["item_id"] for row in made.workspace.tables.read("results").to_pylist()]
    with made.workspace.ledger.database.read() as connection:
        requests = {row.request_hash: row._asdict() for row in connection.execute(sa.select(schema.requests))}
    first, last = (schema.requests.insert().values(requests[hash_of[item]]) for item in (shown[0], shown[-1]))
    settings = made.workspace.settings.model_copy(update={"ledger_url": late_to_look_for_deadlocks(postgres_url)})
    with Workspace.open(settings) as workspace:
        adopted = beside_a_worker(workspace.ledger, lambda: adopt_tables(workspace), last, first)
        held = workspace.ledger.counters()

    assert (adopted.items, adopted.attempts) == (4, 4)
    assert adopted.spent_micros == summary(made.workspace).cost_micros == held["catalogue:one"].spent


def test_tables_are_written_anew_beside_catalogues_that_go(made: World) -> None:
    """It has every catalogue read again, which is an entry of each; one that is gone loses its own."""
    made.catalogue("two", rows(4))
    made.run()
    table = schema.catalogues
    entry = sa.select(table.c.catalogue, table.c.fingerprint).order_by(sa.text("ctid"))
    with made.workspace.ledger.database.read() as connection:
        (first, noted), (last, _) = connection.execute(entry).all()
    assert noted is not None
    of_last, of_first = (
        table.update().where(table.c.catalogue == name).values(fingerprint="f") for name in (last, first)
    )

    mended = beside_a_worker(
        made.workspace.ledger, lambda: mend_tables(made.workspace, everything=True), of_last, of_first
    )

    assert len(mended.shards) == 2
    with made.workspace.ledger.database.read() as connection:
        assert [fingerprint for _, fingerprint in connection.execute(entry)] == [None, None]
