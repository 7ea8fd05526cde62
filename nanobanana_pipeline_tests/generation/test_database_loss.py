"""PostgreSQL goes away in the middle of a run and comes back: the run waits, and the books hold."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from nanobanana_pipeline.ledger.database import Database, LedgerLostError
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
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


def wait_until(condition: Callable[[], bool]) -> None:
    """Until `condition` holds, or half a minute has passed."""
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends


def test_a_run_goes_on_when_the_database_is_back(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], wire: Proxy, through_wire: str
) -> None:
    """An outage costs time alone: what was in the air is booked when the database is back, and nothing twice."""
    pipeline = Pipeline(
        tmp_path, simulator(latency=0.05, cached_picture=True), through_wire, knobs={"max_in_flight": 8}
    )
    pipeline.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(60)])
    running = threading.Thread(target=pipeline.run)
    running.start()
    wait_until(lambda: len(pipeline.accepted()) >= 10)

    wire.cut()
    running.join(1.5)
    assert running.is_alive()
    wire.restore()
    running.join(60)

    assert [row["status"] for row in pipeline.table("results")] == ["succeeded"] * 60
    assert len(pipeline.accepted()) == 60
    pipeline.assert_books_agree()


def test_a_commit_whose_answer_was_lost_counts_once(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], wire: Proxy, through_wire: str
) -> None:
    """The database has booked it and nobody was told: booked again, its money would stand in the counters twice."""
    pipeline = Pipeline(tmp_path, simulator(latency=0.3, cached_picture=True), through_wire)
    pipeline.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(3)])
    running = threading.Thread(target=pipeline.run)
    running.start()
    wait_until(lambda: len(pipeline.accepted()) == 3)

    wire.cut_behind(b"COMMIT")
    wait_until(lambda: wire.is_cut)
    wire.restore()
    running.join(60)

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
