"""`python -m nanobanana_pipeline_tests.chaos --kills 1000`: rounds of kills and a table of what they came to.

A tenth of the kills goes through Dagster and a fifth on PostgreSQL (where there is one); the others hit the engine's
own process on SQLite. Exit 1 if any promise broke.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

from nanobanana_pipeline_tests.chaos.nursery import Through
from nanobanana_pipeline_tests.chaos.round import Round, run_round
from nanobanana_pipeline_tests.chaos.verdict import Verdict

say = partial(print, flush=True)

_KILLS_A_ROUND = {"engine": 50, "dagster": 10}
_LOCAL_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"


def main() -> int:
    """Run the rounds and print what they came to."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--dagster", type=int, help="kills of these that go through Dagster (default: a tenth)")
    parser.add_argument("--postgres", type=int, help="kills of these that are on PostgreSQL (default: a fifth)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    totals: dict[str, Counter[str]] = {}
    failures: list[str] = []
    for number, (through, database, kills) in enumerate(
        _rounds(arguments.kills, arguments.dagster, arguments.postgres)
    ):
        seed = arguments.seed + number
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        verdict = _round(folder, kills, seed, through, database)
        say(
            f"{kills} kills through {through} on {database}, seed {seed}: {len(verdict.failures)} failures, "
            f"{verdict.figures['images']} images, {time.monotonic() - began:.0f} s"
        )
        totals.setdefault(f"{through} on {database}", Counter()).update(verdict.figures)
        for message in verdict.failures:
            say(f"FAILED {message} (see {folder})")
            failures.append(f"seed {seed} ({folder}): {message}")
        if not verdict.failures:
            shutil.rmtree(folder)
        if arguments.json:  # after each round: who stops before the end has what was done
            figures = {"seed": arguments.seed, "rounds": totals, "failures": failures}
            arguments.json.write_text(json.dumps(figures, indent=1))
    _print_table(totals)
    for failure in failures:
        say(f"FAILED {failure}")
    passed = sum(total["kills"] for total in totals.values())
    say(f"{passed} kills, {len(failures)} failures")
    return 1 if failures else 0


def _round(folder: Path, kills: int, seed: int, through: Through, database: str) -> Verdict:
    with _database(database) as url:
        try:
            return run_round(Round(folder, kills, seed, through, url))
        except Exception as error:  # noqa: BLE001 - a round that can't come to its end has failed; the others go on
            verdict = Verdict()
            verdict.fail(f"the round did not come to its end: {error!r}")
            return verdict


def _rounds(kills: int, dagster: int | None, postgres: int | None) -> Iterator[tuple[Through, str, int]]:
    """Split the kills into rounds, each with a world of its own."""
    dagster = kills // 10 if dagster is None else dagster
    postgres = kills // 5 if postgres is None else postgres
    postgres = postgres if postgres and _has_postgres() else 0
    plan: list[tuple[Through, str, int]] = [
        ("dagster", "sqlite", dagster),
        ("engine", "postgresql", postgres),
        ("engine", "sqlite", kills - dagster - postgres),
    ]
    for through, database, share in plan:
        size = _KILLS_A_ROUND[through]
        for done in range(0, share, size):
            yield through, database, min(size, share - done)


def _server() -> str:
    return os.environ.get("NANOBANANA_TEST_POSTGRES", _LOCAL_POSTGRES).replace("postgresql+psycopg://", "postgresql://")


def _has_postgres() -> bool:
    try:
        import psycopg  # noqa: PLC0415 - an optional dependency

        psycopg.connect(_server(), connect_timeout=3).close()
    except Exception:  # noqa: BLE001 - whatever is missing, the kills go to SQLite then
        say("no PostgreSQL: all kills go to SQLite")
        return False
    return True


@contextmanager
def _database(kind: str) -> Generator[str | None]:
    if kind == "sqlite":
        yield None
        return
    import psycopg  # noqa: PLC0415 - an optional dependency

    name = f"nanobanana_chaos_{uuid4().hex[:12]}"
    with psycopg.connect(_server(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield _server().rpartition("/")[0] + f"/{name}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _print_table(totals: dict[str, Counter[str]]) -> None:
    names = list(dict.fromkeys(name for total in totals.values() for name in sorted(total)))
    say("\n| | " + " | ".join(totals) + " |\n| --- |" + " ---: |" * len(totals))
    for name in sorted(names, key=lambda name: (name != "kills", name)):
        say(f"| {name} | " + " | ".join(f"{total[name]:,}" for total in totals.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
