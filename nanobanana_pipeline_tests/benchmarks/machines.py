"""What a set-up of many machines costs, part by part, and what becomes of it when parts of it die.

    python -m nanobanana_pipeline_tests.benchmarks.machines --workers 1 2 3
    python -m nanobanana_pipeline_tests.benchmarks.machines --workers 3 --kill --catalogue partiprompts.parquet

All parts run on one machine, so how many items a second come of it says little; CPU an item of each part says what
each needs wherever it runs. With `--kill` a worker is killed, one sent home, broker and database are away for a while,
and at the end everything is held against the provider's book; there are no figures then. Not part of `make bench`: it
needs PostgreSQL and Redis.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pyarrow.parquet as pq

from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline_tests.benchmarks.measuring import FIGURES, say, table
from nanobanana_pipeline_tests.chaos.verdict import judge
from nanobanana_pipeline_tests.servers.many_machines import ManyMachines, missing
from nanobanana_pipeline_tests.servers.services import Redis

_LATENCY_S: Final = 6.0
_LIMIT_S: Final = 3600.0
_LEAST_TO_KILL: Final = 2
_PARTS: Final = ("workers", "daemon", "code server", "web server", "PostgreSQL", "broker", "object store", "simulator")


@dataclass(frozen=True, slots=True)
class Standing:
    """What every part has used since its start."""

    at: float
    cpu_s: Mapping[str, float]
    ledger_commits: int
    dagster_commits: int
    ledger_bytes: int
    dagster_bytes: int
    wal_bytes: int


def main() -> int:
    """Measure each number of workers in turn, on the same servers; what is killed, is killed in the last turn."""
    parser = argparse.ArgumentParser(
        prog="machines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 3], help="rising numbers")
    parser.add_argument("--processes", type=int, default=2, help="runs at once on each worker")
    parser.add_argument("--prompts", type=int, default=600, help="of a generated catalogue, new for each turn")
    parser.add_argument("--catalogue", type=Path, help="a Parquet file instead, for one turn")
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--kill", action="store_true", help="let parts of it die on the way")
    chosen = parser.parse_args()
    if lacking := missing():
        parser.error(lacking)
    if chosen.kill and chosen.workers[-1] < _LEAST_TO_KILL:
        parser.error(f"--kill needs {_LEAST_TO_KILL} workers or more: one is killed, and one sent home")
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-machines-"))
    knobs = {"shard_size": chosen.shard_size, "budget_usd": 100_000, "max_in_flight": chosen.in_flight}
    pool = max(chosen.workers) * chosen.processes
    figures: list[dict[str, Any]] = []
    with ManyMachines(
        folder, knobs=knobs, simulator={"latency": _LATENCY_S, "cached_picture": True}, pool=pool
    ) as all_:
        say(f"{all_.url}, logs in {folder}")
        all_.start_sensor("generation_sensor")
        for workers in chosen.workers:
            while len(all_.workers) < workers:
                all_.add_worker(processes=chosen.processes)
            figures.append(_measure(all_, chosen, workers))
            say(json.dumps(figures[-1], indent=1))
        failures = _judged(all_)
    if chosen.kill:
        return 1 if failures else 0  # what the dead have used is in no figure
    columns = [f"{each['workers']} workers" if each["workers"] > 1 else "1 worker" for each in figures]
    rows = [[name, *(each["table"][name] for each in figures)] for name in figures[0]["table"]]
    say("\n" + table(["", *columns], rows))
    FIGURES.mkdir(parents=True, exist_ok=True)
    (FIGURES / "machines.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if failures else 0


def _rows(chosen: argparse.Namespace, turn: str) -> list[dict[str, Any]]:
    if chosen.catalogue:
        return pq.read_table(chosen.catalogue).to_pylist()
    return [{"prompt_id": f"p{n:06d}", "prompt": f"{turn}: a fox, number {n}"} for n in range(chosen.prompts)]


def _measure(machines: ManyMachines, chosen: argparse.Namespace, workers: int) -> dict[str, Any]:
    machines.wait_for(
        "the workers", lambda: all(" ready." in worker.log.read_text() for worker in machines.workers), _LIMIT_S
    )
    taken, done = _accepted(machines), sum(machines.states().values())
    rows = _rows(chosen, f"turn{workers}")
    before = _standing(machines)
    machines.pipeline.write(rows, f"turn{workers}")
    in_the_air: set[str] = _kill(machines, taken, len(rows)) if chosen.kill and workers == chosen.workers[-1] else set()
    machines.wait_for("all images", lambda: _over(machines, taken, done + len(rows)), _LIMIT_S)
    machines.wait_for("the runs' end", machines.at_rest, _LIMIT_S)
    after = _standing(machines)
    machines.in_the_air |= in_the_air
    return {"workers": workers, "items": len(rows), "table": _figures(before, after, len(rows))}


def _kill(machines: ManyMachines, before: int, items: int) -> set[str]:
    """Let parts of it die; returns the attempts that were being submitted at a kill."""

    def taken(share: float) -> None:
        machines.wait_for(
            f"{share:.0%} of the submits", lambda: _accepted(machines) >= before + items * share, _LIMIT_S
        )

    taken(0.15)
    say(f"{_accepted(machines)} taken: SIGKILL for all of worker 1, and a new one")
    machines.workers[0].kill()
    in_the_air = machines.being_submitted()
    machines.add_worker()
    taken(0.35)
    say(f"{_accepted(machines)} taken: the broker is away")
    machines.broker.stop()
    time.sleep(5)
    machines.broker.start()
    taken(0.55)
    say(f"{_accepted(machines)} taken: the database is restarted")
    machines.postgres.restart()
    taken(0.7)
    say(f"{_accepted(machines)} taken: worker 2 is sent home, and ends with {machines.workers[1].stop()}")
    return in_the_air


def _accepted(machines: ManyMachines) -> int:
    return machines.simulator.stats()["events"].get("accepted", 0)


def _over(machines: ManyMachines, taken: int, items: int) -> bool:
    # It looks often, and is no part of what is measured: the provider's own count first, which costs nothing.
    if _accepted(machines) <= taken:
        return False
    time.sleep(0.5)
    counts = machines.states()
    return counts[ItemState.DONE] + counts[ItemState.UNKNOWN] + counts[ItemState.FAILED] == items


def _judged(machines: ManyMachines) -> list[str]:
    items = sum(machines.states().values())
    unknown = machines.states()[ItemState.UNKNOWN]
    with machines.pipeline.open() as workspace:
        verdict = judge(workspace, machines.simulator.book, machines.in_the_air)
    billed = Counter(row["idempotency_key"] for row in machines.pipeline.billed())
    twice = [key for key, times in billed.items() if times > 1]
    say(
        f"{items} items, {verdict.figures['images']} images with their hash, {unknown} unknown, "
        f"{verdict.figures['billed calls']} billed, {len(twice)} billed twice, failures: {verdict.failures or 'none'}"
    )
    return [*verdict.failures, *twice]


def _standing(machines: ManyMachines) -> Standing:
    code, web, daemon = machines.programs
    roots: dict[str, Sequence[int]] = {
        "workers": [worker.pid for worker in machines.workers],
        "daemon": [daemon.pid],
        "code server": [code.pid],
        "web server": [web.pid],
        "PostgreSQL": [machines.postgres.pid],
        # A broker that others use as well says nothing of this.
        "broker": [machines.broker.pid] if isinstance(machines.broker, Redis) else [],
        "object store": [machines.store.pid],
        "simulator": [machines.simulator.pid],
    }
    with psycopg.connect(machines.postgres.url("postgres")) as connection:
        query = "SELECT datname, xact_commit, pg_database_size(datid) FROM pg_stat_database WHERE datname LIKE 'nano%'"
        found = {name: (commits, size) for name, commits, size in connection.execute(query).fetchall()}
        (wal,) = connection.execute("SELECT wal_bytes FROM pg_stat_wal").fetchone() or (0,)
    return Standing(
        time.monotonic(),
        {name: sum(map(_cpu_s(), pids)) for name, pids in roots.items()},
        found["nanobanana_ledger"][0],
        found["nanobanana_dagster"][0],
        found["nanobanana_ledger"][1],
        found["nanobanana_dagster"][1],
        int(wal),
    )


def _cpu_s() -> Callable[[int], float]:
    """Seconds of CPU of a process, its living descendants, and those that it has collected."""
    ticks = 100
    used: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        pid = int(stat.parent.name)
        used[pid] = sum(map(int, fields[11:15])) / ticks
        children.setdefault(int(fields[1]), []).append(pid)

    def of(pid: int) -> float:
        return used.get(pid, 0.0) + sum(map(of, children.get(pid, ())))

    return of


def _figures(before: Standing, after: Standing, items: int) -> dict[str, str]:
    seconds = after.at - before.at
    spent = {name: (after.cpu_s[name] - before.cpu_s[name]) / items * 1000 for name in _PARTS}
    return {
        "items": f"{items:,}",
        "items a second": f"{items / seconds:.1f}",
        **{f"{name}, CPU ms an item": f"{ms:.1f}" for name, ms in spent.items()},
        "all parts, CPU ms an item": f"{sum(spent.values()):.1f}",
        "ledger, transactions an item": f"{(after.ledger_commits - before.ledger_commits) / items:.2f}",
        "Dagster's storage, transactions an item": f"{(after.dagster_commits - before.dagster_commits) / items:.2f}",
        "ledger, bytes an item (registered before)": f"{(after.ledger_bytes - before.ledger_bytes) / items:,.0f}",
        "Dagster's storage, bytes an item": f"{(after.dagster_bytes - before.dagster_bytes) / items:,.0f}",
        "PostgreSQL's log, bytes an item": f"{(after.wal_bytes - before.wal_bytes) / items:,.0f}",
    }


if __name__ == "__main__":
    sys.exit(main())
