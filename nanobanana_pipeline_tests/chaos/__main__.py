"""`python -m nanobanana_pipeline_tests.chaos --kills 1000`: rounds of kills and a table of what they came to.

A tenth of the kills goes through Dagster, a tenth strikes Celery workers on many machines (where their servers are
installed), a fifth is on PostgreSQL (where there is one); the others hit the engine's own process on SQLite. Exit 1 if
any promise broke.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from nanobanana_pipeline_tests.chaos.fleet import Fleet, run_fleet
from nanobanana_pipeline_tests.chaos.nursery import Through
from nanobanana_pipeline_tests.chaos.round import Round, run_round
from nanobanana_pipeline_tests.chaos.verdict import Verdict
from nanobanana_pipeline_tests.servers.many_machines import missing

say = partial(print, flush=True)

_LOCAL_POSTGRES: Final = "postgresql://postgres@127.0.0.1:5432/postgres"
_MANY: Final = 20


@dataclass(frozen=True)
class Kind:
    """Rounds of one kind, with so many kills in all."""

    name: str
    kills: int
    a_round: int
    run: Callable[[Path, int, int], Verdict]
    """One round: its folder, its kills and its seed."""

    def rounds(self) -> Iterator[int]:
        """The kills of each."""
        for done in range(0, self.kills, self.a_round):
            yield min(self.a_round, self.kills - done)


def main() -> int:
    """Run the rounds and print what they came to."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--dagster", type=int, help="kills of these that go through Dagster (default: a tenth)")
    parser.add_argument("--celery", type=int, help="kills of these that are on Celery workers (default: a tenth)")
    parser.add_argument(
        "--broker",
        metavar="URL",
        help="a running RabbitMQ or Redis for those, in place of a Redis made for each round: not killed, but cut off",
    )
    parser.add_argument("--postgres", type=int, help="kills of these that are on PostgreSQL (default: a fifth)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    # Told to end, it ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = arguments.seed
    totals: dict[str, Counter[str]] = {}
    failures: list[str] = []
    for kind in kinds(arguments.kills, arguments.dagster, arguments.celery, arguments.postgres, arguments.broker):
        for kills in kind.rounds():
            began = time.monotonic()
            folder = Path(tempfile.mkdtemp(prefix="chaos-"))
            verdict = _round(kind, folder, kills, seed)
            say(
                f"{kills} kills of {kind.name}, seed {seed}: {len(verdict.failures)} failures, "
                f"{verdict.figures['images']} images, {time.monotonic() - began:.0f} s"
            )
            totals.setdefault(kind.name, Counter()).update(verdict.figures)
            for message in verdict.failures:
                say(f"FAILED {message} (see {folder})")
                failures.append(f"seed {seed} ({folder}): {message}")
            if not verdict.failures:
                shutil.rmtree(folder)
            if arguments.json:  # after each round: who stops before the end has what was done
                figures = {"seed": arguments.seed, "rounds": totals, "failures": failures}
                arguments.json.write_text(json.dumps(figures, indent=1))
            seed += 1
    _print_table(totals)
    for failure in failures:
        say(f"FAILED {failure}")
    passed = sum(total["kills"] for total in totals.values())
    say(f"{passed} kills, {len(failures)} failures")
    return 1 if failures else 0


def _round(kind: Kind, folder: Path, kills: int, seed: int) -> Verdict:
    try:
        return kind.run(folder, kills, seed)
    except Exception as error:  # noqa: BLE001 - a round that can't come to its end has failed; the others go on
        verdict = Verdict()
        verdict.fail(f"the round did not come to its end: {error!r}")
        return verdict


def kinds(
    kills: int, dagster: int | None, celery: int | None, postgres: int | None, broker: str | None = None
) -> tuple[Kind, ...]:
    """Split the kills; what can't be had here goes to the others."""
    dagster = kills // 10 if dagster is None else dagster
    celery = kills // 10 if celery is None else celery
    celery = celery if celery and _has_machines() else 0
    postgres = kills // 5 if postgres is None else postgres
    postgres = postgres if postgres and _has_postgres() else 0
    # Half of the workers can see whether the others live, the other half can't: shards of theirs wait for a lease,
    # two minutes and a half. A short run is spared that.
    apart = celery // 2 if celery >= _MANY else 0
    return (
        Kind("workers on one host", celery - apart, 25, partial(_on_workers, apart=False, broker=broker)),
        Kind("workers on hosts of their own", apart, 25, partial(_on_workers, apart=True, broker=broker)),
        Kind("Dagster on SQLite", dagster, 10, partial(_on_sqlite, "dagster")),
        Kind("the engine on PostgreSQL", postgres, 50, _on_postgres),
        Kind("the engine on SQLite", kills - dagster - celery - postgres, 50, partial(_on_sqlite, "engine")),
    )


def _on_workers(folder: Path, kills: int, seed: int, *, apart: bool, broker: str | None) -> Verdict:
    return run_fleet(Fleet(folder, kills, seed, apart, broker))


def _on_sqlite(through: Through, folder: Path, kills: int, seed: int) -> Verdict:
    return run_round(Round(folder, kills, seed, through))


def _on_postgres(folder: Path, kills: int, seed: int) -> Verdict:
    with _database() as url:
        return run_round(Round(folder, kills, seed, ledger_url=url))


def _has_machines() -> bool:
    lacking = missing()
    if lacking:
        say(f"no kills of Celery workers, they go to SQLite: {lacking}")
    return not lacking


def _server() -> str:
    return os.environ.get("NANOBANANA_TEST_POSTGRES", _LOCAL_POSTGRES).replace("postgresql+psycopg://", "postgresql://")


def _has_postgres() -> bool:
    try:
        import psycopg  # noqa: PLC0415 - an optional dependency

        psycopg.connect(_server(), connect_timeout=60).close()
    except Exception:  # noqa: BLE001 - whatever is missing, the kills go to SQLite then
        say("no PostgreSQL: all kills go to SQLite")
        return False
    return True


@contextmanager
def _database() -> Generator[str]:
    import psycopg  # noqa: PLC0415 - an optional dependency

    name = f"nanobanana_chaos_{uuid4().hex[:12]}"
    with psycopg.connect(_server(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
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
