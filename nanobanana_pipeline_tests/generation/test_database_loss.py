"""PostgreSQL goes away in the middle of a run and comes back: the run waits, and the books hold."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database, LedgerLostError
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import QUICK, Pipeline
from nanobanana_pipeline_tests.servers.proxy import Proxy

pytestmark = pytest.mark.postgres


@pytest.fixture
def wire(postgres_url: str) -> Iterator[Proxy]:
    """The only way to the database."""
    with Proxy(make_url(postgres_url).port or 5432) as proxy:
        yield proxy


@pytest.fixture
def through_wire(wire: Proxy, postgres_url: str) -> str:
    """The ledger's URL by way of `wire`."""
    return make_url(postgres_url).set(host="127.0.0.1", port=wire.port).render_as_string(hide_password=False)


SHORT_LEASE = replace(QUICK, lease_s=0.6, submit_timeout_s=0.4, margin_s=0.1)
"""An outage of two seconds is longer than this lease and all that a take-over waits on top of it."""


HELD = [{"fault": "slow_task", "seconds": 3000}]
"""Tasks that end when the provider's clock is put on, and no sooner: until then a run can't be over."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Until `condition` holds, or two minutes have passed."""
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends


def let_go(provider: SimulatorProcess) -> None:
    """Have all tasks end that are held, and hold no more."""
    provider.set_faults([])
    provider.advance(6000)


def test_a_run_goes_on_when_the_database_is_back(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], wire: Proxy, through_wire: str, postgres_url: str
) -> None:
    """An outage costs time alone: nothing is sent, what was in the air is booked when it is over, and nothing twice."""
    provider = simulator(latency=0.05, cached_picture=True)
    provider.set_faults(HELD)
    pipeline = Pipeline(tmp_path, provider, through_wire, knobs={"max_in_flight": 8})
    pipeline.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(150)])
    running = threading.Thread(target=pipeline.run)
    running.start()
    wait_until(lambda: len(pipeline.accepted()) == 8)

    wire.cut()
    # Eight answers, and eight places to fill again: what the ledger had entered before may go, then it is quiet.
    let_go(provider)
    sent = -1
    while sent != (sent := len(pipeline.accepted())):
        running.join(1.0)
    assert running.is_alive()
    assert sent <= attempts_entered(postgres_url) < 150, "sent without a word from the ledger, and so without a cap"
    wire.restore()
    running.join(120)

    assert [row["status"] for row in pipeline.table("results")] == ["succeeded"] * 150
    assert len(pipeline.accepted()) == 150
    pipeline.assert_books_agree()


def attempts_entered(url: str) -> int:
    """How many calls the ledger at `url` knows of."""
    database = Database(url)
    with database.read() as connection:
        entered = connection.execute(sa.select(sa.func.count()).select_from(schema.attempts)).scalar_one()
    database.dispose()
    return entered


def test_an_outage_longer_than_the_lease_is_no_reason_to_stop(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], wire: Proxy, through_wire: str
) -> None:
    """Nobody has taken the work over meanwhile: the worker renews what ran out, and goes on, sending nothing twice."""
    provider = simulator(latency=0.05, cached_picture=True)
    provider.set_faults(HELD)
    pipeline = Pipeline(tmp_path, provider, through_wire, knobs={"max_in_flight": 8})
    pipeline.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(60)])
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(pipeline.run, patience=SHORT_LEASE)
        wait_until(lambda: len(pipeline.accepted()) == 8)
        wire.cut()
        let_go(provider)
        assert not wait([running], timeout=2.0).done
        wire.restore()
        running.result(120)

    assert [row["status"] for row in pipeline.table("results")] == ["succeeded"] * 60
    assert len(pipeline.accepted()) == 60
    pipeline.assert_books_agree()


def test_a_worker_cut_off_past_its_lease_sends_nothing_that_another_has_taken(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], wire: Proxy, through_wire: str, postgres_url: str
) -> None:
    """Its own way to the ledger is cut, another machine's is not: when it comes back, the work is someone else's."""
    provider = simulator(latency=0.05, cached_picture=True)
    # Four are held, so that it can't be over before it is cut off; the others go through all states meanwhile.
    provider.set_faults([{**each, "prompt": f"a fox {n}"} for each in HELD for n in range(4)])
    cut_off = Pipeline(tmp_path, provider, through_wire, knobs={"max_in_flight": 8})
    successor = Pipeline(tmp_path, provider, postgres_url, knobs={"max_in_flight": 8}, runs=100)
    cut_off.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(60)])
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(cut_off.run, patience=SHORT_LEASE)
        wait_until(lambda: len(cut_off.accepted()) >= 10)
        wire.cut()
        let_go(provider)
        successor.run(patience=SHORT_LEASE)
        wire.restore()
        with pytest.raises(UserError, match="was taken over"):
            running.result(120)
    # The answers that it could not enter were not lost: what its successor had to hold as unknown is settled by them.
    successor.run()

    assert [row["status"] for row in successor.table("results")] == ["succeeded"] * 60
    assert sorted(successor.accepted()) == sorted(f"a fox {n}" for n in range(60))
    successor.assert_books_agree()


def test_a_commit_whose_answer_was_lost_counts_once(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], wire: Proxy, through_wire: str
) -> None:
    """The database has booked it and nobody was told: booked again, its money would stand in the counters twice."""
    provider = simulator(latency=0.05, cached_picture=True)
    provider.set_faults(HELD)
    pipeline = Pipeline(tmp_path, provider, through_wire)
    pipeline.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(3)])
    running = threading.Thread(target=pipeline.run)
    running.start()
    wait_until(lambda: len(pipeline.accepted()) == 3)

    wire.cut_behind(b"COMMIT")
    let_go(provider)
    wait_until(lambda: wire.is_cut)
    wire.restore()
    running.join(120)

    assert [row["status"] for row in pipeline.table("results")] == ["succeeded"] * 3
    pipeline.assert_books_agree()
    with pipeline.open() as workspace:
        spent = sum(held.spent for scope, held in workspace.ledger.counters().items() if scope.startswith("day:"))
    assert spent == 1_000_000 * sum(row["cost_usd"] for row in pipeline.table("results"))


def test_a_database_that_stays_away_is_said_in_a_line(
    wire: Proxy, through_wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting has an end, and what to do then is said."""
    database = Database(through_wire)
    database.prepare()
    monkeypatch.setattr("nanobanana_pipeline.ledger.database.LOSS_PATIENCE_S", 0.1)
    wire.cut()
    with pytest.raises(LedgerLostError, match="out of reach"), database.read():
        pass
    database.dispose()
