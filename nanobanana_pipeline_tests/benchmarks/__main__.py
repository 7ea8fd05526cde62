"""`make bench`: measure, print, and write the figures as JSON and into docs/performance.md."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from nanobanana_pipeline_tests.benchmarks import decoding, engine, limits, live_limits, memory, polling, scale, tables
from nanobanana_pipeline_tests.benchmarks.measuring import Section, say


def _engine(chosen: argparse.Namespace) -> Section:
    sizes: list[int] = chosen.sizes or ([10, 1000] if chosen.quick else [10, 1000, 10_000])
    rounds: int = chosen.rounds or (1 if chosen.quick else 3)
    return engine.measure(sizes, rounds, 2.0 if chosen.quick else 5.0, chosen.programs)


_GROUPS: Final[dict[str, Callable[[argparse.Namespace], Section]]] = {
    "engine": _engine,
    "polling": lambda _: polling.measure(),
    "limits": lambda _: limits.measure(),
    "live_limits": lambda chosen: live_limits.measure(0.25 if chosen.quick else 1.0),
    "decoding": lambda _: decoding.measure(),
    "tables": lambda chosen: tables.measure(200_000, 100) if chosen.quick else tables.measure(10_000_000, 10_000),
    "memory": lambda chosen: memory.measure(500, 1000) if chosen.quick else memory.measure(10_000, 100_000),
    "scale": lambda chosen: scale.measure(20_000 if chosen.quick else 1_000_000),
}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and once; under three minutes, page untouched")
    parser.add_argument("--only", nargs="+", choices=_GROUPS, default=list(_GROUPS), help="some groups alone")
    parser.add_argument("--sizes", nargs="+", type=int, help="engine: numbers of items")
    parser.add_argument("--rounds", type=int, help="engine: turns")
    parser.add_argument("--programs", nargs="+", choices=engine.CONTENDERS, default=list(engine.CONTENDERS))
    parser.add_argument("--keep-page", action="store_true", help="leave docs/performance.md as it is")
    chosen = parser.parse_args()
    if len(chosen.only) > 1:
        # Each in a process of its own: no child's peak of memory is seen as lower than its parent's, and after tables
        # of ten million rows every program seemed to take 821 MB.
        for name in chosen.only:
            command = [sys.executable, "-m", __spec__.parent, *sys.argv[1:], "--only", name]
            if code := subprocess.run(command, check=False).returncode:
                raise SystemExit(code)
        return
    (name,) = chosen.only
    say(f"{name}:")
    section = _GROUPS[name](chosen)
    say(f"\n{section.text}\n")
    section.save(on_page=not (chosen.quick or chosen.keep_page))


if __name__ == "__main__":
    main()
