"""One round of chaos: a world of its own, so many kills at random moments, then peace, and the verdict."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline.settings import Settings, load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.chaos.faults import MIX
from nanobanana_pipeline_tests.chaos.nursery import Life, Nursery, Task, Through
from nanobanana_pipeline_tests.chaos.phases import (
    CATALOGUE,
    DOWNLOAD,
    LEDGER,
    MEND,
    POLL,
    REPAIR,
    STORE,
    SUBMIT,
    TABLES,
    Board,
)
from nanobanana_pipeline_tests.chaos.reading import READ_TABLES, reading_beside
from nanobanana_pipeline_tests.chaos.verdict import Verdict, judge

SHARD_SIZE: Final = 40
_PROMPTS_A_KILL: Final = {"engine": 24, "dagster": 36}
# A life is as long as so many tasks that the provider took or ended, and a moment more. By the clock alone, every kill
# on a busy machine once struck the reading of the catalogue, and none a request.
_MOST_EVENTS: Final = {"engine": 60, "dagster": 90}
_BYTES_AN_EVENT: Final = 500
_A_MOMENT_S: Final = 0.5
_LONGEST_START_S: Final = {"engine": 1.0, "dagster": 4.0}
_LONGEST_LIFE_S: Final = 300.0
_AIMED: Final = 0.6
"""Share of the kills that wait for a phase to begin and strike a moment later; the others strike whatever goes on."""
_LONGEST_AIM_S: Final = 15.0
_AIMS: Final = (SUBMIT, POLL, DOWNLOAD, STORE, LEDGER, TABLES)
_EARLY_AIMS: Final = (MEND, CATALOGUE)
_EARLY: Final = 0.15
"""Share of the lives that are killed while they mend, read and begin."""
_LONGEST_LOOK_S: Final = {TABLES: 0.05, MEND: 0.2, CATALOGUE: 0.2, REPAIR: 1.0}
"""How far into a phase a kill may strike; the others are over in milliseconds."""
_REPAIRS: Final = {"engine": 0.2, "dagster": 0.1}
"""Share of the lives that are the command `repair`, after some harm was done that it has to mend."""
_MOST_FILES_LOST: Final = 4
_TORN: Final = 0.5
"""Share of them before which a table's newest commit is torn."""
_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PEACE_TIMEOUT_S: Final = 600


@dataclass(frozen=True)
class Round:
    """What a round is to do; the same seed kills after the same waits."""

    folder: Path
    kills: int
    seed: int
    through: Through = "engine"
    ledger_url: str | None = None


def run_round(plan: Round) -> Verdict:
    """Kill so many times, then let it finish, and judge."""
    rng = random.Random(plan.seed)
    _write_catalogue(plan)
    rules = [{**rule, "seed": plan.seed} for rule in MIX]
    with SimulatorProcess(
        book=plan.folder / "book.jsonl", latency=0.25, seed=plan.seed, cached_picture=True, picture_bytes=30_000
    ) as simulator:
        simulator.set_faults(rules)
        settings = _settings(plan, simulator)
        struck = Struck()
        board = plan.folder / "board"
        killer = Killer(plan, settings, Board(board), simulator.book_path, rng)
        nursery = Nursery(plan.through, _environment(plan, settings), board, plan.folder / "stderr.log")
        with reading_beside(settings) as beside, closing(nursery):
            for _ in range(plan.kills):
                killer.live_and_die(nursery, struck)
            # Peace: what the faults still hold back (a slow task, a host out of order) comes with time.
            simulator.set_faults([])
            for _ in range(3):
                _finish(nursery, "run")
                simulator.advance(30)
            _finish(nursery, "repair")
        with Workspace.open(settings) as workspace:
            verdict = judge(workspace, simulator.book, struck.submits)
        verdict.figures["kills"] = plan.kills
        verdict.figures["image files lost"] = struck.files_lost
        verdict.figures["table commits torn"] = struck.commits_torn
        for phase, times in struck.phases.items():
            verdict.figures[f"kills that struck: {phase}"] = times
        beside.tell(verdict)
    return verdict


@dataclass
class Struck:
    """What the kills of a round met, and what harm was done besides."""

    phases: Counter[str] = field(default_factory=Counter)
    submits: set[str] = field(default_factory=set)
    files_lost: int = 0
    commits_torn: int = 0


@dataclass
class Killer:
    """Lets lives live for a while, and then SIGKILLs their whole process group."""

    plan: Round
    settings: Settings
    board: Board
    book: Path
    rng: random.Random

    def live_and_die(self, nursery: Nursery, struck: Struck) -> None:
        """One life and its end."""
        repair = self.rng.random() < _REPAIRS[self.plan.through] and self._do_harm(struck)
        self.board.clear()
        life = nursery.bear("repair" if repair else "run")
        try:
            if repair:
                self._repair(life)
            elif self.rng.random() < _EARLY:
                self._begin(life)
            else:
                self._work(life)
        finally:
            life.kill()
        phases = self.board.struck() or {"nothing: it was between two steps"}
        struck.phases.update(phases if life.code == -signal.SIGKILL else {"nothing: the life had ended by itself"})
        struck.submits |= _submitting(self.settings)

    def _begin(self, life: Life) -> None:
        """Strike while it mends, reads and begins."""
        if self.rng.random() < _AIMED:
            self._await(life, self.rng.choice(_EARLY_AIMS))
        else:
            life.wait(self.rng.uniform(0, _LONGEST_START_S[self.plan.through]))

    def _work(self, life: Life) -> None:
        """Strike while it works."""
        enough = _bytes(self.book) + self.rng.uniform(0, _MOST_EVENTS[self.plan.through]) * _BYTES_AN_EVENT
        last = time.monotonic() + _LONGEST_LIFE_S
        while not life.ended and _bytes(self.book) < enough and time.monotonic() < last:
            life.wait(0.005)
        if self.rng.random() < _AIMED:
            self._await(life, self.rng.choice(_AIMS))
        else:
            life.wait(self.rng.uniform(0, _A_MOMENT_S))

    def _repair(self, life: Life) -> None:
        """Strike while it mends."""
        if self.rng.random() < _AIMED:
            self._await(life, self.rng.choice((REPAIR, MEND, TABLES, DOWNLOAD, STORE)))
        else:
            life.wait(self.rng.uniform(0, 2 * _LONGEST_START_S["engine"]))

    def _await(self, life: Life, phase: str) -> None:
        last = time.monotonic() + _LONGEST_AIM_S
        while not life.ended and time.monotonic() < last:
            life.wait(self.rng.uniform(0, 0.002))
            if self.board.at(phase):
                # Mostly soon: a phase that is over by then may not come back.
                life.wait(_LONGEST_LOOK_S.get(phase, 0.002) * self.rng.random() ** 3)
                if self.board.at(phase):
                    return

    def _do_harm(self, struck: Struck) -> bool:
        """Lose image files, and now and then the newest commit of a table, as a power cut leaves it: empty.

        Returns whether there was anything yet to lose.
        """
        output = Path(self.settings.output)
        files = sorted((output / "images").rglob("*.*"))
        for path in self.rng.sample(files, min(len(files), self.rng.randint(1, _MOST_FILES_LOST))):
            path.unlink()
            struck.files_lost += 1
        commits = sorted((output / "tables" / self.rng.choice(READ_TABLES) / "_delta_log").glob("*.json"))
        # Never the first: without it there is no table, and whoever reads beside the run would say so.
        if len(commits) > 1 and self.rng.random() < _TORN:
            commits[-1].write_bytes(b"")
            struck.commits_torn += 1
        return bool(files)


def _bytes(book: Path) -> int:
    return book.stat().st_size if book.exists() else 0


def _finish(nursery: Nursery, task: Task) -> None:
    """Let a life end by itself."""
    life = nursery.bear(task)
    try:
        life.wait(_PEACE_TIMEOUT_S)
    finally:
        life.kill()
    # A run may leave items that need a person; a repair has to find back all that was lost.
    if life.code not in ({0, 3} if task == "run" else {0}):
        raise AssertionError(f"the {task} that should finish ended with {life.code}; see stderr.log")


def _environment(plan: Round, settings: Settings) -> dict[str, str]:
    assert settings.api_key is not None
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("NANOBANANA_")},
        "NANOBANANA_API_KEY": settings.api_key.get_secret_value(),
        "NANOBANANA_BASE_URL": str(settings.base_url),
        "NANOBANANA_CATALOGUE": settings.catalogue,
        "NANOBANANA_OUTPUT": settings.output,
        "NANOBANANA_SHARD_SIZE": str(SHARD_SIZE),
        "NANOBANANA_TASK_DEADLINE_S": str(settings.task_deadline_s),
        "NANOBANANA_BUDGET_USD": str(settings.budget_usd),
        "NANOBANANA_MAX_IN_FLIGHT": str(settings.max_in_flight),
        **({"NANOBANANA_LEDGER_URL": plan.ledger_url} if plan.ledger_url else {}),
        "DAGSTER_HOME": str(plan.folder / "dagster"),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }


def _settings(plan: Round, simulator: SimulatorProcess) -> Settings:
    return load_settings(
        api_key=simulator.api_key,
        base_url=simulator.base_url,
        catalogue=str(plan.folder / "catalogue"),
        output=str(plan.folder / "output"),
        ledger_url=plan.ledger_url,
        shard_size=SHARD_SIZE,
        task_deadline_s=4,
        budget_usd=100_000,
        max_in_flight=32,
    )


def _write_catalogue(plan: Round) -> None:
    count = plan.kills * _PROMPTS_A_KILL[plan.through]
    path = plan.folder / "catalogue" / "chaos.parquet"
    path.parent.mkdir(parents=True)
    texts = [f"chaos {plan.seed}, picture {n}" for n in range(count)]
    pq.write_table(pa.table({"prompt_id": [f"p{n}" for n in range(count)], "prompt": texts}), path)


def _submitting(settings: Settings) -> set[str]:
    """Attempts that the ledger shows as being submitted now that the process is dead, before anyone takes them over."""
    engine = sa.create_engine(settings.ledger.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            query = sa.select(schema.attempts.c.attempt_id).where(
                schema.attempts.c.state == AttemptState.SUBMITTING.value
            )
            return set(connection.execute(query).scalars())
    except DBAPIError:
        return set()  # killed before the ledger was made
    finally:
        engine.dispose()
