"""Several processes on one ledger: they share the work, the cap, and nothing is sent twice."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from nanobanana_pipeline.generation.shard_run import generate_shard
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.schema import attempts, leases
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.servers.many_machines import as_machine

_REPOSITORY = Path(__file__).resolve().parents[2]
_WORKER = "nanobanana_pipeline_tests.chaos.worker"
Make = Callable[..., Pipeline]


@pytest.fixture
def make(tmp_path: Path, simulator: Callable[..., SimulatorProcess]) -> Make:
    """`make(rows, knobs, **simulator options)`: a pipeline with its catalogue written."""

    def pipeline(rows: int, knobs: dict[str, object], **options: object) -> Pipeline:
        made = Pipeline(tmp_path, simulator(cached_picture=True, **options), knobs=dict(knobs))
        made.write([{"prompt_id": f"p{n}", "prompt": f"picture {n}"} for n in range(rows)])
        return made

    return pipeline


@contextmanager
def workers(pipeline: Pipeline, *runs: str, apart: bool = False) -> Generator[list["subprocess.Popen[str]"]]:
    """Processes that work the pipeline off, one for each run, which begin at the same moment.

    One that began when its imports are done would often be through before the next has its own. `apart`: each on a
    host of its own, called like its run.
    """
    settings = pipeline.settings
    environment = {
        **os.environ,
        "NANOBANANA_API_KEY": pipeline.simulator.api_key,
        "NANOBANANA_BASE_URL": pipeline.simulator.base_url,
        "NANOBANANA_OUTPUT": settings.output,
        "NANOBANANA_CATALOGUE": settings.catalogue,
        **{f"NANOBANANA_{name.upper()}": str(value) for name, value in pipeline.knobs.items()},
        **({"NANOBANANA_LEDGER_URL": pipeline.ledger_url} if pipeline.ledger_url else {}),
    }
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [*(as_machine(run) if apart else ()), sys.executable, "-m", _WORKER, run],
                cwd=_REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for run in runs
        ]
        for process in processes:
            stack.callback(process.communicate)
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("begin\n")
            process.stdin.flush()
        yield processes


def different(column: sa.Column[str], pipeline: Pipeline) -> int:
    """How many different values a column has: of attempts, who really was at work, rather than too late."""
    with Ledger(pipeline.ledger_url or pipeline.settings.ledger) as ledger, ledger.database.read() as connection:
        return connection.execute(sa.select(sa.func.count(column.distinct()))).scalar_one()


HELD = [{"fault": "slow_task", "seconds": 3000, "contains": "picture"}]
"""Tasks that end when they are let go, and no sooner: whoever comes late does not come too late."""


def let_go_when_at_work(pipeline: Pipeline, count: int, column: sa.Column[str]) -> None:
    """Have the held tasks end, and hold no more, once the leases have so many different values of a column."""
    ends = time.monotonic() + 120
    while different(column, pipeline) < count:
        assert time.monotonic() < ends, f"there are no {count} at work"
        time.sleep(0.02)
    pipeline.simulator.set_faults([])
    pipeline.simulator.advance(6000)


def stop_outside_a_transaction(process: "subprocess.Popen[str]", ledger: Path) -> None:
    """SIGSTOP a process at a moment when it doesn't hold SQLite's write lock, which would stop everyone with it."""
    for _ in range(100):
        process.send_signal(signal.SIGSTOP)
        with closing(sqlite3.connect(ledger, timeout=0.2, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.01)
            else:
                connection.execute("ROLLBACK")
                return
    raise AssertionError("the process was writing each time that it was stopped")


_NOTE_EVERY_SUM = {
    "sqlite": (
        """CREATE TRIGGER sums_at_insert AFTER INSERT ON budget
           BEGIN INSERT INTO sums VALUES (NEW.scope, NEW.reserved + NEW.spent + NEW.at_risk); END""",
        """CREATE TRIGGER sums_at_update AFTER UPDATE ON budget
           BEGIN INSERT INTO sums VALUES (NEW.scope, NEW.reserved + NEW.spent + NEW.at_risk); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION note_sum() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN
                INSERT INTO sums VALUES (NEW.scope, NEW.reserved + NEW.spent + NEW.at_risk);
                RETURN NEW;
              END $$""",
        "CREATE TRIGGER sums AFTER INSERT OR UPDATE ON budget FOR EACH ROW EXECUTE FUNCTION note_sum()",
    ),
}


def note_every_sum(ledger: Ledger) -> None:
    """Have the database itself note, with each change of a counter, what it adds up to: no commit is missed."""
    with ledger.database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE sums (scope text, total bigint)")
        for command in _NOTE_EVERY_SUM[ledger.database.dialect]:
            connection.exec_driver_sql(command)


def sums_of_the_day(ledger: Ledger) -> list[int]:
    """Every sum that the day's counter has had."""
    with ledger.database.read() as connection:
        return list(connection.exec_driver_sql("SELECT total FROM sums WHERE scope LIKE 'day:%%'").scalars())


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_the_cap_holds_at_every_commit_over_four_processes(
    make: Make, database: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """A cap that each process keeps for itself is four caps; and one that leaves money unused is no better.

    On PostgreSQL each is on a host of its own.
    """
    apart = database == "postgres"
    cap = 60 * 67_200 // 2
    pipeline = make(60, {"budget_usd": f"{cap / 1_000_000:.6f}", "shard_size": 15, "max_in_flight": 8}, latency=0.05)
    if database == "postgres":
        pipeline.ledger_url = request.getfixturevalue("postgres_url")
    pipeline.refresh()
    with Ledger(pipeline.ledger_url or pipeline.settings.ledger) as ledger:
        note_every_sum(ledger)
        pipeline.simulator.set_faults(HELD)
        with workers(pipeline, "one", "two", "three", "four", apart=apart) as processes:
            let_go_when_at_work(pipeline, 4, leases.c.run_id)
            for process in processes:
                assert process.wait(240) == 0
        sums = sums_of_the_day(ledger)
    spent = sum(int(row["cost_usd"].scaleb(6)) for row in pipeline.table("attempts"))
    figures = {"commits": len(sums), "most held of the cap": max(sums) / cap, "spent of the cap": spent / cap}
    for name, value in figures.items():
        record_property(name, value)
    print(database, figures)  # noqa: T201 - both are promised: pytest -s shows them
    assert len(sums) >= 10  # group commits: fewer than attempts
    assert max(sums) <= cap
    assert spent >= 0.9 * cap
    assert different(attempts.c.run_id, pipeline) >= 2, "one alone shares the cap with nobody"
    assert {row["status"] for row in pipeline.results().values()} == {"succeeded", "deferred"}
    pipeline.assert_books_agree()


@pytest.mark.parametrize("second", ["two", "one"], ids=["two runs", "one run started twice"])
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_two_runs_of_one_shard_do_its_work_once(
    make: Make, database: str, second: str, request: pytest.FixtureRequest
) -> None:
    """Someone clicks twice, or a busy Dagster starts a run once more: the work is done once, and all of it is shown."""
    pipeline = make(40, {"max_in_flight": 4, "budget_usd": 1000}, latency=0.1)
    if database == "postgres":
        pipeline.ledger_url = request.getfixturevalue("postgres_url")
    pipeline.refresh()
    pipeline.simulator.set_faults(HELD)
    with workers(pipeline, "one", second) as (one, two):
        let_go_when_at_work(pipeline, 2, leases.c.owner)
        assert (one.wait(200), two.wait(200)) == (0, 0)
    assert sorted(pipeline.accepted()) == sorted(f"picture {n}" for n in range(40))
    assert {row["status"] for row in pipeline.results().values()} == {"succeeded"}
    assert different(attempts.c.owner, pipeline) == 2, "they did not work side by side"
    pipeline.assert_books_agree()


def test_a_worker_that_was_stopped_past_its_lease_sends_nothing_that_another_has_taken(make: Make) -> None:
    """A paused virtual machine, a closed laptop: when it wakes, the world has moved on."""
    pipeline = make(12, {"max_in_flight": 3, "budget_usd": 1000}, latency=600, url_lifetime=1e9)
    with workers(pipeline, "sleeper") as (sleeper,):
        ends = time.monotonic() + 120
        while pipeline.tasks_entered() < 3:
            assert time.monotonic() < ends
            time.sleep(0.05)
        stop_outside_a_transaction(sleeper, Path(pipeline.settings.output) / "ledger.sqlite")
        with workers(pipeline, "successor") as (successor,):
            deadline = time.monotonic() + 200
            while successor.poll() is None and time.monotonic() < deadline:
                events = pipeline.simulator.stats()["events"]
                # Only while a task runs: result URLs grow old by the same clock.
                if events["accepted"] > events.get("billed", 0):
                    pipeline.simulator.advance(3000)
                time.sleep(0.1)
            assert successor.returncode == 0
        assert len(pipeline.accepted()) == 12
        sleeper.send_signal(signal.SIGCONT)
        sleeper.wait(120)
    assert len(pipeline.accepted()) == 12
    assert {row["status"] for row in pipeline.results().values()} == {"succeeded"}
    pipeline.assert_books_agree()


@pytest.mark.postgres
def test_the_providers_limits_hold_over_three_hosts(make: Make, postgres_url: str) -> None:
    """Each host knows only itself; a limit that each keeps for itself is three, and the provider refuses the rest."""
    limits = {"max_in_flight": 6, "requests_per_minute": 900}
    pipeline = make(60, {"shard_size": 15, "budget_usd": 1000, **limits}, latency=0.2, **limits)
    pipeline.ledger_url = postgres_url
    pipeline.refresh()
    pipeline.simulator.set_faults(HELD)
    with workers(pipeline, "one", "two", "three", apart=True) as processes:
        let_go_when_at_work(pipeline, 3, leases.c.run_id)
        for process in processes:
            assert process.wait(120) == 0
    assert {row["status"] for row in pipeline.results().values()} == {"succeeded"}
    assert pipeline.simulator.stats()["events"].get("refused", 0) <= 1
    assert different(attempts.c.run_id, pipeline) == 3, "a host came too late"
    pipeline.assert_books_agree()


def test_a_small_run_is_done_long_before_the_large_one_beside_it(make: Make) -> None:
    """Whoever was there first fills every place that becomes free, and would keep the others waiting until its end."""
    pipeline = make(80, {"max_in_flight": 4, "budget_usd": 1000, "shard_size": 80}, latency=0.25)
    pipeline.write([{"prompt_id": f"s{n}", "prompt": f"small {n}"} for n in range(6)], "small")
    pipeline.refresh()

    def run(shard: str) -> None:
        with pipeline.open() as workspace:
            generate_shard(workspace, shard, lambda: pipeline.provider(workspace), pipeline.options())

    pipeline.simulator.set_faults(HELD)
    with ThreadPoolExecutor(2) as threads:
        large = threads.submit(run, "cat-000000")
        pipeline.simulator.wait_for("accepted", 4)
        small = threads.submit(run, "small-000000")
        let_go_when_at_work(pipeline, 2, leases.c.owner)
        small.result()
        large.result()
    taken = pipeline.accepted()
    assert len(taken) == 86
    # Side by side they take 6 each; to be done first, it waits for no more than that and what was under way.
    last = max(place for place, prompt in enumerate(taken) if prompt.startswith("small"))
    assert last < 50
