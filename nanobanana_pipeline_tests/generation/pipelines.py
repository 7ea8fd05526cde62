"""A whole pipeline without Dagster, for tests: a catalogue, a simulator, and what became of it in tables and book."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nanobanana_pipeline.generation.client import HttpProvider, Timeouts
from nanobanana_pipeline.generation.intake import RefreshReport, refresh
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.shard_run import RunOptions, ShardReport, generate_shard
from nanobanana_pipeline.generation.stopping import StopSwitch
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.settings import Settings, load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess

QUICK = Patience(
    submit_backoff_s=0.01, download_backoff_s=0.005, not_found_s=0.2, stop_grace_s=3.0, submit_timeout_s=1.0
)
AMPLE_TIMEOUTS = Timeouts(connect_s=30.0, submit_s=60.0, poll_s=60.0, download_s=120.0, idle_s=60.0)
"""Nothing that is only slow, on a busy machine, is lost: a submit without its answer would be of unknown outcome."""
SHORT_TIMEOUTS = replace(AMPLE_TIMEOUTS, connect_s=0.9, submit_s=1.0)
"""Where an answer that does not come is the fault."""


@dataclass
class Pipeline:
    """One output and one catalogue folder, worked off against one simulator."""

    folder: Path
    simulator: SimulatorProcess
    ledger_url: str | None = None
    bucket: str | None = None
    """Where output and catalogue are, instead of the folder."""
    knobs: dict[str, Any] = field(default_factory=dict)
    timeouts: Timeouts = AMPLE_TIMEOUTS
    runs: int = 0

    @property
    def settings(self) -> Settings:
        """The settings of this pipeline."""
        return load_settings(
            api_key=self.simulator.api_key,
            base_url=self.simulator.base_url,
            output=f"{self.bucket or self.folder}/output",
            catalogue=f"{self.bucket or self.folder}/catalogue",
            ledger_url=self.ledger_url,
            **self.knobs,
        )

    def write(self, rows: Sequence[Mapping[str, Any]], name: str = "cat") -> Path:
        """Write a catalogue of these rows; what a row lacks is null."""
        path = self.folder / "catalogue" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), path)
        if self.bucket:
            store, base = open_uri(self.bucket)
            store.put_file(str(path), f"{base}/catalogue/{path.name}")
        return path

    @property
    def environment(self) -> dict[str, str]:
        """The environment with these settings, for processes that work on the same output."""
        settings = self.settings.model_dump(exclude_defaults=True, exclude={"api_key"}) | self.knobs
        mine = {f"NANOBANANA_{name.upper()}": str(value) for name, value in settings.items()}
        return os.environ | mine | {"NANOBANANA_API_KEY": self.simulator.api_key}

    def open(self) -> Workspace:
        """Its output, to be closed by the caller."""
        return Workspace.open(self.settings)

    def provider(self, workspace: Workspace) -> HttpProvider:
        """A client of its simulator, for use inside an event loop."""
        settings = workspace.settings
        return HttpProvider(workspace.spec, settings.api_key, base_url=settings.base_url, timeouts=self.timeouts)

    def options(self, **changes: Any) -> RunOptions:
        """Options of a run of its own, unless `changes` say otherwise."""
        self.runs += 1
        run = f"run-{self.runs}"
        return replace(RunOptions(run, run, run, patience=QUICK), **changes)

    def run(self, *, stop: StopSwitch | None = None, **options: Any) -> list[ShardReport]:
        """Refresh, then work every shard off, one after the other."""
        with self.open() as workspace:
            shards = refresh(workspace).shards
            run = self.options(**options)
            return [
                generate_shard(workspace, shard, lambda: self.provider(workspace), run, stop=stop) for shard in shards
            ]

    def refresh(self) -> RefreshReport:
        """Bring the ledger up to date with the catalogue."""
        with self.open() as workspace:
            return refresh(workspace)

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        with self.open() as workspace:
            return workspace.tables.read(name).to_pylist()

    def results(self) -> dict[tuple[str, int], dict[str, Any]]:
        """`results` by prompt_id and sample."""
        return {(row["prompt_id"], row["sample"]): row for row in self.table("results")}

    def attempts(self, prompt_id: str) -> list[dict[str, Any]]:
        """A prompt's rows of `attempts`, in order."""
        rows = [row for row in self.table("attempts") if row["prompt_id"] == prompt_id]
        return sorted(rows, key=lambda row: row["attempt"])

    def billed(self, prompt: str | None = None) -> list[dict[str, Any]]:
        """What the provider charged for, from its own book."""
        return [
            row
            for row in self.simulator.book
            if row["event"] == "billed" and (prompt is None or row["prompt"] == prompt)
        ]

    def accepted(self) -> list[str]:
        """The prompts of all submits that became a task."""
        return [row["prompt"] for row in self.simulator.book if row["event"] == "accepted"]

    def tasks_entered(self, catalogue: str = "cat") -> int:
        """How many tasks the ledger knows of: who is killed before has requests of unknown outcome."""
        query = sa.select(sa.func.count(schema.attempts.c.task_id)).where(schema.attempts.c.catalogue == catalogue)
        with self.open() as workspace, workspace.ledger.database.read() as connection:
            return connection.execute(query).scalar_one()

    def let_pass(self, hours: float) -> None:
        """Set back every time that the ledger has of its attempts, as if so long had passed in which nobody ran."""
        table = schema.attempts
        times = [column for column in table.c if column.name.endswith("_at")]
        earlier = {column.name: column - round(hours * 3_600_000) for column in times}
        with self.open() as workspace, workspace.ledger.database.write() as connection:
            connection.execute(table.update().values(earlier))

    def assert_books_agree(self) -> None:
        """Every billed call is covered by an attempt, to the micro-dollar; nothing was billed twice for one attempt."""
        attempts = {row["attempt_id"]: row for row in self.table("attempts")}
        billed: dict[str, Decimal] = {}
        for row in self.billed():
            assert row["idempotency_key"] not in billed, f"billed twice: {row}"
            billed[row["idempotency_key"]] = Decimal(row["cost_usd"])
        for attempt_id, cost in billed.items():
            attempt = attempts[attempt_id]
            if attempt["at_risk_usd"]:
                assert attempt["at_risk_usd"] >= cost
            else:
                assert attempt["cost_usd"] == cost, attempt
        for attempt_id, attempt in attempts.items():
            if attempt["cost_usd"]:
                assert attempt_id in billed, f"booked, but never billed: {attempt}"
        results = self.table("results")
        assert sum(row["cost_usd"] for row in results) == sum(row["cost_usd"] for row in attempts.values())
        with self.open() as workspace:
            for image in self.table("images"):
                assert workspace.images.exists(image["path"], image["bytes"]), image
