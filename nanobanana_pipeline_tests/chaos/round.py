"""One round of chaos: a world of its own, so many kills at random moments, then peace, and the verdict."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from deltalake import DeltaTable
from sqlalchemy.exc import DBAPIError

from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline.settings import Settings, load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.chaos.faults import MIX
from nanobanana_pipeline_tests.chaos.nursery import Nursery, Through
from nanobanana_pipeline_tests.chaos.verdict import Verdict, judge

SHARD_SIZE: Final = 40
_PROMPTS_A_KILL: Final = {"engine": 45, "dagster": 90}
# A life is as long as so many tasks that the provider took or ended, and a moment more. By the clock alone, every kill
# on a busy machine once struck the reading of the catalogue, and none a request.
_MOST_EVENTS: Final = {"engine": 120, "dagster": 240}
_BYTES_AN_EVENT: Final = 500
_A_MOMENT_S: Final = 0.5
_KILLED_AT_WORK: Final = 0.85
"""Share of the lives that are so long; the others are killed while they mend, read and begin."""
_LONGEST_START_S: Final = {"engine": 1.0, "dagster": 4.0}
_LONGEST_LIFE_S: Final = 60.0
_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PEACE_TIMEOUT_S: Final = 600
_READ_TABLES: Final = ("results", "attempts", "images")


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
        in_the_air = 0
        nursery = Nursery(plan.through, _environment(plan, settings), plan.folder / "stderr.log")
        with _reading_beside(settings) as unreadable, closing(nursery):
            for _ in range(plan.kills):
                in_the_air += _live_and_die(plan, settings, nursery, simulator.book_path, rng)
            # Peace: what the faults still hold back (a slow task, a host out of order) comes with time.
            simulator.set_faults([])
            for _ in range(3):
                _finish(plan, settings)
                simulator.advance(30)
        with Workspace.open(settings) as workspace:
            verdict = judge(workspace, simulator.book, in_the_air)
        verdict.figures["kills"] = plan.kills
        verdict.figures["reads beside the run"] = unreadable.reads
        for message in unreadable.messages:
            verdict.fail(message)
    return verdict


def _live_and_die(plan: Round, settings: Settings, nursery: Nursery, book: Path, rng: random.Random) -> int:
    """Let a run live for a random while, then SIGKILL its whole process group; returns its submits in the air."""
    life = nursery.bear()
    try:
        if rng.random() < _KILLED_AT_WORK:
            enough = _bytes(book) + rng.uniform(0, _MOST_EVENTS[plan.through]) * _BYTES_AN_EVENT
            last = time.monotonic() + _LONGEST_LIFE_S
            while not life.ended and _bytes(book) < enough and time.monotonic() < last:
                life.wait(0.005)
            life.wait(rng.uniform(0, _A_MOMENT_S))
        else:
            life.wait(rng.uniform(0, _LONGEST_START_S[plan.through]))
    finally:
        life.kill()
    return _submitting(settings)


def _bytes(book: Path) -> int:
    return book.stat().st_size if book.exists() else 0


def _finish(plan: Round, settings: Settings) -> None:
    process = _start(plan, settings)
    try:
        output, _ = process.communicate(timeout=_PEACE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode not in {0, 3}:
        raise AssertionError(f"the run that should finish ended with {process.returncode}: {output}")


def _start(plan: Round, settings: Settings) -> "subprocess.Popen[str]":
    engine = [sys.executable, "-m", "nanobanana_pipeline_tests.chaos.worker", "chaos-run"]
    dagster = [sys.executable, "-m", "nanobanana_pipeline.cli", "run", "--json"]
    with (plan.folder / "stderr.log").open("a") as errors:
        return subprocess.Popen(
            engine if plan.through == "engine" else dagster,
            cwd=_REPOSITORY,
            env=_environment(plan, settings),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )


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


def _submitting(settings: Settings) -> int:
    """Submits that the ledger shows as in the air now that the process is dead, before anyone takes them over."""
    engine = sa.create_engine(settings.ledger.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            query = sa.select(sa.func.count()).where(schema.attempts.c.state == AttemptState.SUBMITTING.value)
            return connection.execute(query).scalar_one()
    except DBAPIError:
        return 0  # killed before the ledger was made
    finally:
        engine.dispose()


class _Reader:
    def __init__(self, settings: Settings) -> None:
        self._root = Path(settings.output) / "tables"
        self.messages: list[str] = []
        self.reads = 0

    def read_all(self) -> None:
        """Open each table as a stranger would, and count its rows."""
        for name in _READ_TABLES:
            folder = self._root / name
            if not list((folder / "_delta_log").glob("*.json")):
                continue
            try:
                rows: Any = DeltaTable(str(folder)).to_pyarrow_dataset().count_rows()
                self.reads += 1 if rows >= 0 else 0
            except Exception as error:  # noqa: BLE001 - whatever a stranger's reader meets
                self.messages.append(f"a reader beside the run could not read {name}: {error!r}"[:500])


@contextmanager
def _reading_beside(settings: Settings) -> Generator[_Reader]:
    reader = _Reader(settings)
    done = threading.Event()

    def loop() -> None:
        while not done.wait(0.5):
            reader.read_all()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield reader
    finally:
        done.set()
        thread.join()
