"""Workspaces that a real engine filled: reports are held against a provider's book, not against rows made up here."""

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from nanobanana_pipeline.generation.client import HttpProvider
from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.shard_run import RunOptions, ShardReport, generate_shard
from nanobanana_pipeline.generation.stopping import RunInterruptedError, StopSwitch
from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.ledger import Stamp
from nanobanana_pipeline.settings import SIMULATOR_KEY, Settings, load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess

Row = Mapping[str, Any]

HALF_PRICE = """
[[prices]]
version = "negotiated"
valid_from = 2026-01-01
currency = "USD"
source = "our contract"
input_per_million = 0.25
text_output_per_million = 1.50
image_output_per_million = 30.00
image_per_resolution = { "0.5K" = 0.02241, "1K" = 0.0336, "2K" = 0.0504, "4K" = 0.0756 }
"""
"""A price file: half of the list."""


class World:
    """A catalogue, a provider and an output, and the three things that can be done with them."""

    def __init__(
        self, folder: Path, *, faults: Sequence[Row] = (), cached_picture: bool = True, **settings: Any
    ) -> None:
        """`faults` are the rules of a fault script; further settings are those of the pipeline."""
        self.folder = folder
        (folder / "catalogue").mkdir()
        script = folder / "faults.json"
        script.write_bytes(orjson.dumps(list(faults)))
        self._running = ExitStack()
        self.provider = self._running.enter_context(
            SimulatorProcess(
                book=folder / "book.jsonl", latency=0.02, sigma=0.2, faults=script, cached_picture=cached_picture
            )
        )
        wanted = load_settings(
            api_key=SecretStr(SIMULATOR_KEY),
            base_url=self.provider.base_url,
            catalogue=str(folder / "catalogue"),
            output=str(folder / "output"),
            **settings,
        )
        self.workspace = self._running.enter_context(Workspace.open(wanted))
        self.workspace.ledger.claim(Stamp("simulated", self.provider.base_url))
        self._runs = itertools.count(1)

    def catalogue(self, name: str, rows: Sequence[Row]) -> None:
        """Write a catalogue, or overwrite it: that is how a person edits one."""
        names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        columns = {column: [row.get(column) for row in rows] for column in names}
        pq.write_table(pa.table(columns), self.folder / "catalogue" / f"{name}.parquet")

    def run(self, **options: Any) -> list[ShardReport]:
        """Register what changed, then work off every shard."""
        refreshed = refresh(self.workspace)
        run = self._options(options)
        return [generate_shard(self.workspace, shard, self._open, run) for shard in refreshed.shards]

    def run_shard(self, shard: str, **options: Any) -> ShardReport:
        """Work one shard off."""
        return generate_shard(self.workspace, shard, self._open, self._options(options))

    def stop_once_sent(self, submitted: int) -> None:
        """Register what changed, and work shards off until so many of a shard's tasks are accepted; they are left."""
        refreshed, stop = refresh(self.workspace), StopSwitch()

        def watch(tally: Tally) -> None:
            if tally.submitted >= submitted:
                stop.throw()

        with suppress(RunInterruptedError):
            for shard in refreshed.shards:
                generate_shard(self.workspace, shard, self._open, self._options({}), stop=stop, on_progress=watch)

    def _options(self, options: dict[str, Any]) -> RunOptions:
        run_id = f"run-{next(self._runs)}"
        return RunOptions(run_id=run_id, root_run_id=run_id, run_scope=run_id, allow_duplicates=True, **options)

    def billed(self) -> Decimal:
        """What the provider has billed by now, in dollars, by its own book."""
        return sum((Decimal(row["cost_usd"]) for row in self.provider.book if row["event"] == "billed"), Decimal(0))

    @contextmanager
    def elsewhere(self, settings: Settings) -> Generator[Workspace]:
        """The same ledger with another output."""
        with Workspace.open(settings.model_copy(update={"ledger_url": self.workspace.ledger.url})) as workspace:
            yield workspace

    def close(self) -> None:
        """Stop the provider and close the workspace."""
        self._running.close()

    def _open(self) -> HttpProvider:
        settings = self.workspace.settings
        return HttpProvider(self.workspace.spec, settings.api_key, base_url=settings.base_url)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """`world(faults=[…])`: a new, empty one, closed at the end."""
    with ExitStack() as open_worlds:

        def make(**options: Any) -> World:
            folder = tmp_path / f"world-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            made = World(folder, **options)
            open_worlds.callback(made.close)
            return made

        yield make


def rows(count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows of a catalogue, with prompt ids `p000`…; a column given as a list is gone through again and again."""
    return [
        {"prompt_id": f"p{i:03}", "prompt": f"a picture of thing number {i}"}
        | {name: value[i % len(value)] if isinstance(value, list) else value for name, value in columns.items()}
        for i in range(count)
    ]
