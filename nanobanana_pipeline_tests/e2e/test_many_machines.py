"""Three workers, a broker, PostgreSQL and a bucket: what one machine promises, with parts of it killed on the way."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline_tests.chaos.verdict import judge
from nanobanana_pipeline_tests.servers.many_machines import ManyMachines, Program
from nanobanana_pipeline_tests.servers.services import Postgres, Redis

pytest.importorskip("dagster_celery", reason="the extra `celery` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GENERATION = ("images", "results", "attempts")
_FOXES = 240
_SHARD = 20
_LIMIT_S = 600


@pytest.fixture(scope="module")
def machines(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, bool, str], None]
) -> Iterator[ManyMachines]:
    """All servers and Dagster; the workers are each test's own."""
    require("redis", Redis.found(), "install it, e.g. apt install redis-server")
    require("postgres", Postgres.found(), "install the server itself, e.g. apt install postgresql")
    knobs = {"shard_size": _SHARD, "budget_usd": 1000, "max_in_flight": 24}
    simulator = {"latency": 2.0, "sigma": 0.2, "cached_picture": True}
    folder = tmp_path_factory.mktemp("machines")
    with ManyMachines(folder, knobs=knobs, simulator=simulator, pool=6, dead_after_s=15) as machines:
        yield machines


@pytest.fixture
def worker(machines: ManyMachines) -> Iterator[Callable[..., Program]]:
    """`worker(…)`: a machine more, which ends with the test."""
    yield machines.add_worker
    for each in machines.workers:
        each.stop()


def submitted(machines: ManyMachines, catalogue: str) -> int:
    """How many tasks of a catalogue the provider has taken."""
    return len([prompt for prompt in machines.pipeline.accepted() if prompt.startswith(catalogue)])


def enter(machines: ManyMachines, catalogue: str, count: int) -> None:
    """Put a catalogue into the bucket, and see it read by itself."""
    machines.pipeline.write(prompts(catalogue, count), catalogue)
    machines.wait_for("the catalogue", lambda: sum(machines.states([catalogue]).values()) == count, _LIMIT_S)


def prompts(catalogue: str, count: int) -> list[dict[str, str]]:
    """So many prompts, small ones."""
    return [{"prompt_id": f"{n:04d}", "prompt": f"{catalogue}, number {n}", "resolution": "0.5K"} for n in range(count)]


def test_a_stop_in_the_pages_ends_a_run_on_its_worker(machines: ManyMachines, worker: Callable[..., Program]) -> None:
    """Wherever it runs: what was sent is kept, the tables are written, and the next run goes on."""
    worker(processes=1)
    enter(machines, "owls", 4)
    machines.simulator.set_faults([{"fault": "slow_task", "seconds": 3000, "contains": "owls"}])
    run = machines.materialize(GENERATION, partition="owls-000000")
    machines.wait_for("the submits", lambda: submitted(machines, "owls") == 4, _LIMIT_S)
    machines.terminate(run)
    assert machines.wait_for_end(run, _LIMIT_S) == "CANCELED", machines.log
    assert {row["status"] for row in machines.pipeline.table("results")} == {"in_flight"}
    machines.simulator.set_faults([])
    machines.simulator.advance(6000)
    again = machines.materialize(GENERATION, partition="owls-000000")
    assert machines.wait_for_end(again, _LIMIT_S) == "SUCCESS", machines.log
    assert {row["status"] for row in machines.pipeline.table("results")} == {"succeeded"}
    assert submitted(machines, "owls") == 4


@pytest.mark.skipif(
    "NANOBANANA_TEST_SHOW" not in os.environ, reason="takes many minutes of many processes: NANOBANANA_TEST_SHOW=1"
)
def test_whatever_dies_on_the_way_every_image_is_made_and_paid_for_once(
    machines: ManyMachines, worker: Callable[..., Program]
) -> None:
    """A worker killed, one sent home, a new one, database and broker away for a while: the books agree at the end."""
    killed, sent_home, _ = worker(), worker(), worker()
    enter(machines, "foxes", _FOXES)
    # The person who turns this on clicks nothing from here on.
    machines.start_sensor("generation_sensor")

    def taken(count: int) -> None:
        machines.wait_for(f"{count} submits", lambda: submitted(machines, "foxes") >= count, _LIMIT_S)

    in_the_air: set[str] = set()
    for share in (8, 5, 4):
        taken(_FOXES // share)
        killed.kill()
        in_the_air |= machines.being_submitted()
        killed = worker()
    machines.broker.stop()
    worker()
    time.sleep(3)  # for so long nothing can be handed out, and those at work must not mind
    machines.broker.start()
    taken(_FOXES // 2)
    assert sent_home.stop() == 143, machines.log
    machines.postgres.restart()

    def over() -> bool:
        counts = machines.states(["foxes"])
        return counts[ItemState.DONE] + counts[ItemState.UNKNOWN] == _FOXES

    machines.wait_for("all images", over, _LIMIT_S)
    machines.wait_for("the runs' end", machines.at_rest, _LIMIT_S)

    unknown = machines.states(["foxes"])[ItemState.UNKNOWN]
    with machines.pipeline.open() as workspace:
        verdict = judge(workspace, machines.simulator.book, in_the_air)
    assert verdict.failures == [], machines.log
    billed = Counter(row["prompt"] for row in machines.pipeline.billed())
    assert set(billed.values()) == {1}
    assert machines.states(["foxes"])[ItemState.DONE] == _FOXES - unknown
