"""A catalogue of a million rows: checked, entered, found unchanged with nothing left to do, and taken up again.

Each step runs in a process of its own, whose CPU and memory are measured. The ledger's attempts and the tables' rows of
work that is done are made straight away, by SQL and Arrow: no image is made.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nanobanana_pipeline_tests.benchmarks.measuring import Section, finished, measured, python, say, table
from nanobanana_pipeline_tests.benchmarks.provider import running_provider

_COST: Final = 67_200
_OPEN: Final = 10_000


def measure(rows: int) -> Section:
    """Every step in turn, on one output."""
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-scale-"))
    figures: dict[str, Any] = {"rows": rows}
    try:
        # In a process of its own as well: a child's peak is never seen as less than its parent's.
        finished(python(__name__, "catalogue", str(rows)), knobs={"CATALOGUE": str(folder / "catalogue")})
        with running_provider(latency=1, sigma=0) as provider:
            knobs = {
                "API_KEY": "none",
                "BASE_URL": provider.base_url,
                "CATALOGUE": str(folder / "catalogue"),
                "OUTPUT": str(folder / "output"),
            }
            for step in ("validate", "register", "make", "look", "rest", "take_over"):
                figures[step] = finished(python(__name__, step, str(min(_OPEN, rows))), knobs=knobs)
                say(f"  {step}: {figures[step]}")
                if step == "rest":
                    cost = measured(python("nanobanana_pipeline.cli", "run", "--json"), knobs=knobs)
                    figures["run"] = {"cpu_s": cost.cpu_s, "wall_s": cost.wall_s, "peak_mb": cost.peak_mb}
                    say(f"  run: {figures['run']}")
        help_cost = [measured(python("nanobanana_pipeline.cli", "--help")).cpu_s for _ in range(5)]
        figures["help"] = {"cpu_s": sorted(help_cost)[2]}
    finally:
        shutil.rmtree(folder)
    return Section("scale", _text(figures), figures)


def _text(figures: dict[str, Any]) -> str:
    rows = figures["rows"]

    def speed(step: str) -> str:
        return f"{rows / figures[step]['cpu_s']:,.0f} rows a CPU second"

    listed: list[list[object]] = [
        ["rows checked", speed("validate"), f"{figures['validate']['peak_mb']:.0f}", "100,000 a second, 500 MB"],
        ["rows entered", speed("register"), f"{figures['register']['peak_mb']:.0f}", "30,000 a second, 500 MB"],
        [
            "`run` that finds what the last one found: nothing to do",
            f"{figures['run']['cpu_s']:.1f} s CPU",
            f"{figures['run']['peak_mb']:.0f}",
            "5 s",
        ],
        [
            "what the first such run pays besides: tables held against the ledger, sums",
            f"{figures['look']['cpu_s']:.1f} s CPU",
            f"{figures['look']['peak_mb']:.0f}",
            "",
        ],
        [
            f"{min(_OPEN, rows):,} open attempts of a dead worker taken over",
            f"{figures['take_over']['cpu_s']:.1f} s CPU",
            f"{figures['take_over']['peak_mb']:.0f}",
            "5 s",
        ],
        ["`nanobanana --help`", f"{figures['help']['cpu_s']:.2f} s CPU", "", "0.3 s"],
    ]
    return (
        f"A catalogue of {rows:,} rows, and as many attempts in the ledger (SQLite). Entering is the ledger part, "
        "checks included; CPU includes the start of each process.\n\n"
        + table(["what", "speed or time", "peak MB", "target"], listed)
    )


# --- in a process of its own -----------------------------------------------------------------------------------------


def _catalogue(rows: int) -> None:
    from nanobanana_pipeline.settings import load_settings  # noqa: PLC0415 - each step pays for its own

    path = Path(load_settings().catalogue) / "bench.parquet"
    path.parent.mkdir(parents=True)
    numbers = range(rows)
    columns = {
        "prompt_id": [f"p{number}" for number in numbers],
        "prompt": [f"a picture of the number {number}, in oil" for number in numbers],
        "campaign": [f"campaign {number % 20}" for number in numbers],
    }
    pq.write_table(pa.table(columns), path)


def _validate(_: int) -> None:
    from nanobanana_pipeline.catalogue.reading import find_catalogues  # noqa: PLC0415 - each step pays for its own
    from nanobanana_pipeline.catalogue.validation import validate  # noqa: PLC0415
    from nanobanana_pipeline.model_specs.loader import load_spec  # noqa: PLC0415
    from nanobanana_pipeline.settings import load_settings  # noqa: PLC0415

    (source,) = find_catalogues(load_settings().catalogue)
    for _batch in validate(source, load_spec()):
        pass


def _register(_: int) -> None:
    from nanobanana_pipeline.catalogue.validation import validate  # noqa: PLC0415
    from nanobanana_pipeline.generation.intake import chosen_sources  # noqa: PLC0415

    with _workspace() as workspace:
        (source,) = chosen_sources(workspace.settings, None)
        workspace.ledger.register(
            source.name,
            (batch.prompts for batch in validate(source, workspace.spec)),
            default_resolution=workspace.spec.default_resolution,
            shard_size=workspace.settings.shard_size,
            complete=lambda: True,
        )


def _make(_: int) -> None:
    """Have every item made, in the ledger and in the tables."""
    from nanobanana_pipeline.generation.intake import _fingerprint, chosen_sources  # noqa: PLC0415
    from nanobanana_pipeline.generation.publishing import publish_prompts  # noqa: PLC0415
    from nanobanana_pipeline.ledger import schema  # noqa: PLC0415
    from nanobanana_pipeline.storage.schemas import SCHEMAS  # noqa: PLC0415

    items, attempts = schema.items, schema.attempts
    plain = ("item_id", "catalogue", "shard", "prompt_id", "sample", "campaign", "request_hash")
    fixed: dict[str, Any] = {
        "attempt": 1,
        "model": "nano_banana_2",
        "resolution": "1K",
        "cause": "new",
        "run_id": "r",
        "root_run_id": "r",
        "run_scope": "r",
        "owner": "gone",
        "state": "stored",
        "day": "2026-11-01",
        "created_at": 1,
        "submitted_at": 1,
        "completed_at": 2,
        "stored_at": 3,
        "closed_at": 3,
        "submits": 1,
        "polls": 3,
        "reserved_micros": _COST,
        "cost_micros": _COST,
        "at_risk_micros": 0,
        "images": "[]",
    }
    with _workspace() as workspace:
        with workspace.ledger.database.write() as connection:
            made = sa.select(items.c.item_id, *(items.c[name] for name in plain), *map(sa.literal, fixed.values()))
            connection.execute(attempts.insert().from_select(["attempt_id", *plain, *fixed], made))
            connection.execute(items.update().values(state="done", attempts=1, last_attempt_id=items.c.item_id))
            listed = connection.execute(sa.select(*(items.c[name] for name in plain))).all()
        columns = dict(zip(plain, map(list, zip(*listed, strict=True)), strict=True))
        count = len(listed)
        cost = Decimal(_COST).scaleb(-6)
        same = {"model": "nano_banana_2", "resolution": "1K", "cost_usd": cost, "at_risk_usd": cost * 0, "active": True}
        of_table = {
            "results": same | {"status": "succeeded", "attempts": 1, "image_count": 1, "polls": 3},
            "attempts": same | {"state": "stored", "attempt": 1, "polls": 3},
            "images": same | {"n": 1, "format": "jpeg", "bytes": 277_000},
        }
        for name, values in of_table.items():
            arrays: dict[str, Any] = {}
            for field in SCHEMAS[name]:
                if field.name in columns or field.name == "attempt_id":
                    arrays[field.name] = pa.array(columns[field.name if field.name in columns else "item_id"])
                elif field.name in values:
                    arrays[field.name] = pa.repeat(pa.scalar(values[field.name], field.type), count)
            workspace.tables.append(name, pa.table(arrays))
        publish_prompts(workspace, "bench")
        for name in SCHEMAS:
            workspace.tables.ensure(name)
        (source,) = chosen_sources(workspace.settings, None)
        workspace.ledger.seal(source.name, _fingerprint(source, workspace.spec))


def _look(_: int) -> None:
    from nanobanana_pipeline.generation.staleness import stale_shards  # noqa: PLC0415
    from nanobanana_pipeline.reporting.costs import summary  # noqa: PLC0415

    with _workspace() as workspace:
        if stale_shards(workspace):
            raise SystemExit("what was made does not agree with itself")
        summary(workspace)


def _rest(_: int) -> None:
    """Note that nothing is left to do, as a run does that found it."""
    from nanobanana_pipeline.generation import rest  # noqa: PLC0415
    from nanobanana_pipeline.reporting.costs import summary  # noqa: PLC0415

    with _workspace() as workspace:
        found = {"standing": asdict(summary(workspace)), "rejected_rows": 0}
        rest.note(workspace, rest.look(workspace), found)


def _take_over(count: int) -> None:
    from nanobanana_pipeline.ledger import schema  # noqa: PLC0415
    from nanobanana_pipeline.ledger.work import take_over  # noqa: PLC0415

    with _workspace() as workspace:
        with workspace.ledger.database.write() as connection:
            first = sa.select(schema.items.c.item_id).order_by(schema.items.c.position).limit(count)
            connection.execute(
                schema.attempts.update().where(schema.attempts.c.item_id.in_(first)).values(state="submitted")
            )
        taken = 0
        for work in workspace.ledger.shard_work()[: -(-count // workspace.settings.shard_size)]:
            with workspace.ledger.posting() as postings:
                taken += len(take_over(postings, work.shard, "new owner", grace_s=0).attempts)
        if taken != count:
            raise SystemExit(f"{taken} of {count} were taken over")


def _workspace() -> Any:
    from nanobanana_pipeline.generation.workspace import Workspace  # noqa: PLC0415
    from nanobanana_pipeline.ledger.ledger import Stamp  # noqa: PLC0415
    from nanobanana_pipeline.settings import load_settings  # noqa: PLC0415

    workspace = Workspace.open(load_settings())
    workspace.ledger.claim(Stamp("simulated", "http://127.0.0.1"))
    return workspace


_STEPS: Final[dict[str, Callable[[int], None]]] = {
    "catalogue": _catalogue,
    "validate": _validate,
    "register": _register,
    "make": _make,
    "look": _look,
    "rest": _rest,
    "take_over": _take_over,
}

if __name__ == "__main__":
    began = time.monotonic()
    _STEPS[sys.argv[1]](int(sys.argv[2]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    said = {
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": time.monotonic() - began,
        "peak_mb": used.ru_maxrss / 1024,
    }
    say(json.dumps(said))
