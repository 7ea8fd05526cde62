"""A round of chaos on many machines: Celery workers, broker and database are killed under Dagster's daemon.

The same faults, board and verdict as a round on one machine. Here nobody but the daemon starts runs again, so the round
ends when it has brought every item to an end.
"""

import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline_tests.chaos.faults import MIX
from nanobanana_pipeline_tests.chaos.phases import DOWNLOAD, LEDGER, POLL, STORE, SUBMIT, TABLES, Board
from nanobanana_pipeline_tests.chaos.reading import reading_beside
from nanobanana_pipeline_tests.chaos.verdict import Verdict, judge
from nanobanana_pipeline_tests.servers.many_machines import ManyMachines, Program
from nanobanana_pipeline_tests.servers.services import Service
from nanobanana_pipeline_tests.servers.shared_broker import SharedBroker

WORKERS: Final = 3
_WORKER: Final = "nanobanana_pipeline_tests.chaos.fleet_worker"
_PROMPTS_A_KILL: Final = 24
_SHARD_SIZE: Final = 24
_DEAD_AFTER_S: Final = 15
_MOST_EVENTS: Final = 40
_BYTES_AN_EVENT: Final = 500
"""A kill comes when the provider has taken or ended up to so many tasks more: not by the clock, see `round.py`."""
_A_MOMENT_S: Final = 0.5
_AIMED: Final = 0.6
"""Share of a worker's kills that wait for a phase to begin; the others strike whatever goes on."""
_AIMS: Final = (SUBMIT, POLL, DOWNLOAD, STORE, LEDGER, TABLES)
_LONGEST_AIM_S: Final = 10.0
_BROKER: Final = 0.1
_DATABASE: Final = 0.1
"""Share of the kills that strike these and no worker: the one forgets what it had, the other recovers from its log."""
_LONGEST_AWAY_S: Final = 3.0
_LONGEST_START_S: Final = 300.0
_LONGEST_LULL_S: Final = 90.0
"""Longer than the daemon takes to hand a run out again that the broker forgot."""
_PEACE_TIMEOUT_S: Final = 1200.0
"""A worker killed between its claim and its run's start may hold a shard for five minutes, see `send_again`."""
_SETTLED: Final = (ItemState.DONE, ItemState.UNKNOWN, ItemState.FAILED)


@dataclass(frozen=True)
class Fleet:
    """What a round is to do. Workers that are `apart` can't see whether the others live: shards wait for a lease."""

    folder: Path
    kills: int
    seed: int
    apart: bool
    broker: str | None = None
    """The URL of one that others use too; it is not killed, but cut off. None: a Redis of the round's own."""


def run_fleet(plan: Fleet) -> Verdict:
    """Kill so many times, let the daemon finish, and judge."""
    knobs = {"shard_size": _SHARD_SIZE, "budget_usd": 100_000, "max_in_flight": 24}
    simulator = {"latency": 0.5, "seed": plan.seed, "cached_picture": True, "picture_bytes": 30_000}
    with ManyMachines(
        plan.folder,
        knobs=knobs,
        simulator=simulator,
        pool=WORKERS,
        dead_after_s=_DEAD_AFTER_S,
        broker=plan.broker,
    ) as machines:
        machines.simulator.set_faults([{**rule, "seed": plan.seed} for rule in MIX])
        machines.pipeline.write(
            [
                {"prompt_id": f"p{n}", "prompt": f"chaos {plan.seed}, picture {n}"}
                for n in range(plan.kills * _PROMPTS_A_KILL)
            ],
            "chaos",
        )
        machines.pipeline.refresh()
        killer = Killer(plan, machines, random.Random(plan.seed))
        with reading_beside(machines.pipeline.settings) as beside:
            killer.begin()
            for _ in range(plan.kills):
                killer.strike()
            machines.simulator.set_faults([])
            machines.wait_for("the end of every item", killer.done, _PEACE_TIMEOUT_S)
            machines.wait_for("the runs' end", machines.at_rest, _PEACE_TIMEOUT_S)
        for worker in machines.workers:
            worker.kill()
        with machines.pipeline.open() as workspace:
            verdict = judge(workspace, machines.simulator.book, killer.submits)
    verdict.figures["kills"] = plan.kills
    for phase, times in killer.phases.items():
        verdict.figures[f"kills that struck: {phase}"] = times
    beside.tell(verdict)
    return verdict


@dataclass
class Killer:
    """Keeps so many workers alive, and SIGKILLs one's whole group, or the broker, or crashes the database."""

    plan: Fleet
    machines: ManyMachines
    rng: random.Random
    phases: Counter[str] = field(default_factory=Counter)
    """What the kills met."""
    submits: set[str] = field(default_factory=set)
    """Attempts that were being submitted at a kill."""
    _workers: list[tuple[Program, Board]] = field(default_factory=list)

    def begin(self) -> None:
        """Start the workers, and have the daemon give them shards."""
        self.machines.start_sensor("generation_sensor")
        for number in range(WORKERS):
            path = self.plan.folder / f"board{number}"
            board = Board(path)
            board.clear()
            program = (sys.executable, "-m", _WORKER, str(path))
            # One process each: a board is one process's.
            worker = self.machines.add_worker(processes=1, program=program, apart=self.plan.apart)
            self._workers.append((worker, board))
        self.machines.wait_for("the first submit", lambda: self._taken() > 0, _LONGEST_START_S)

    def strike(self) -> None:
        """Wait for some work to be done, and kill."""
        enough = self._taken() + self.rng.uniform(0, _MOST_EVENTS) * _BYTES_AN_EVENT
        last = time.monotonic() + _LONGEST_LULL_S
        while self._taken() < enough and time.monotonic() < last and not self.done():
            time.sleep(0.2)
        chance = self.rng.random()
        if chance < _BROKER:
            self.phases["the broker"] += 1
            self._take_away(self.machines.broker, signal.SIGKILL)
        elif chance < _BROKER + _DATABASE:
            self.phases["the database"] += 1
            self._note_submits()
            # It ends as in a crash, and its next start recovers: SIGKILL would reach only the first of its processes.
            self._take_away(self.machines.postgres, signal.SIGQUIT)
        else:
            self._kill_worker()
        self._note_submits()

    def done(self) -> bool:
        """Whether every item has come to an end; workers that have ended by themselves are started again."""
        self._look_after()
        states = self.machines.states()
        return sum(states.values()) == sum(states[state] for state in _SETTLED)

    def _kill_worker(self) -> None:
        worker, board = self._aim() if self.rng.random() < _AIMED else self._wait_a_moment()
        worker.kill()
        self._note_submits()
        self.phases.update(board.struck() or {"nothing: it was between two steps"})
        self._start(worker, board)

    def _aim(self) -> tuple[Program, Board]:
        """A worker for which a phase has just begun, if one comes to it in time."""
        phase = self.rng.choice(_AIMS)
        last = time.monotonic() + _LONGEST_AIM_S
        while time.monotonic() < last:
            for worker, board in self._workers:
                if board.at(phase):
                    return worker, board
            time.sleep(self.rng.uniform(0, 0.002))
        return self.rng.choice(self._workers)

    def _wait_a_moment(self) -> tuple[Program, Board]:
        time.sleep(self.rng.uniform(0, _A_MOMENT_S))
        return self.rng.choice(self._workers)

    def _take_away(self, service: Service | SharedBroker, number: int) -> None:
        service.stop(number)
        time.sleep(self.rng.uniform(0, _LONGEST_AWAY_S))
        service.start()

    def _look_after(self) -> None:
        """As any supervisor would."""
        for worker, board in self._workers:
            if not worker.alive:
                self.phases["nothing: the worker had ended by itself"] += 1
                self._start(worker, board)

    def _start(self, worker: Program, board: Board) -> None:
        board.clear()
        worker.start()

    def _note_submits(self) -> None:
        self.submits |= self.machines.being_submitted()

    def _taken(self) -> int:
        book = self.machines.simulator.book_path
        return book.stat().st_size if book.exists() else 0
