"""What a provider allows, and how much of it is used: the real command at a real simulator that enforces it.

`limits` asks the same of the gate alone, in simulated time and for longer. Here shards change, the ledger is written,
tasks are polled and pictures are fetched meanwhile.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from nanobanana_pipeline.simulator.billing import as_seconds
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.benchmarks.engine import write_catalogue
from nanobanana_pipeline_tests.benchmarks.measuring import Section, measured, python, say, table

_SHARD: Final = 100
_SIGMA: Final = 0.25
_PICTURE_BYTES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Case:
    """What the provider allows, and what the product is told of it."""

    name: str
    items: int
    latency_s: float
    allowed: dict[str, int]
    told: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Submits a second that the provider allows; of N in flight, N over the median latency.

        A little more than could be: a place is taken for the mean, which the few slow ones raise.
        """
        if "requests_per_minute" in self.allowed:
            return self.allowed["requests_per_minute"] / 60
        return self.allowed["max_in_flight"] / self.latency_s


CASES: Final = (
    Case("600 a minute, known", 600, 2, {"requests_per_minute": 600}, {"REQUESTS_PER_MINUTE": "600"}),
    Case("64 in flight, known", 1600, 8, {"max_in_flight": 64}, {"MAX_IN_FLIGHT": "64"}),
    Case("120 a minute, to be found out", 160, 2, {"requests_per_minute": 120}),
)


def measure(share: float = 1.0) -> Section:
    """Each case once; `share` of its items."""
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    for case in CASES:
        accepted, refused = _run(case, max(2 * _SHARD, int(case.items * share)))
        seconds = Counter(int(moment) for moment in refused)
        rate = _rate(case, accepted)
        lasted = accepted[-1] - accepted[0]
        figures[case.name] = asdict(case) | {
            "used": rate / case.best,
            "accepted": len(accepted),
            "refused_a_second": len(refused) / lasted,
            "worst_second": max(seconds.values(), default=0),
        }
        rows.append(
            [
                case.name,
                f"{len(accepted)} in {lasted:.0f} s",
                # Found out by a provider that counts by the minute, the first minutes say nothing of the use.
                f"{rate / case.best * 100:.0f} %" if case.told else "",
                f"{len(refused) / lasted:.2f}",
                max(seconds.values(), default=0),
            ]
        )
        say(f"  {rows[-1]}")
    header = ["the provider allows", "taken", "used", "refused a second", "most refused in a second"]
    text = (
        f"`nanobanana run` over shards of {_SHARD}, in real time, by the simulator's book; latency 2 or 8 s "
        f"(log-normal, sigma {_SIGMA}). Of N in flight, all is N over the median latency.\n\n" + table(header, rows)
    )
    return Section("live_limits", text, figures)


def _run(case: Case, items: int) -> tuple[list[float], list[float]]:
    """When submits were accepted, and when others were refused, in seconds since the epoch."""
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-limits-"))
    options: dict[str, Any] = {"cached_picture": True, "picture_bytes": _PICTURE_BYTES, **case.allowed}
    try:
        with SimulatorProcess(latency=case.latency_s, sigma=_SIGMA, **options) as simulator:
            write_catalogue(folder / "catalogue" / "bench.parquet", items)
            knobs = {
                "API_KEY": simulator.api_key,
                "BASE_URL": simulator.base_url,
                "CATALOGUE": str(folder / "catalogue"),
                "OUTPUT": str(folder / "output"),
                "BUDGET_USD": "100000",
                "SHARD_SIZE": str(_SHARD),
                "MAX_IN_FLIGHT": "512",
                **case.told,
            }
            measured(python("nanobanana_pipeline.cli", "run", "--json"), knobs=knobs)
            book = list(simulator.book)
    finally:
        shutil.rmtree(folder)
    moments = {event: [as_seconds(row["time"]) for row in book if row["event"] == event] for event in _EVENTS}
    return sorted(moments["accepted"]), sorted(moments["refused"])


_EVENTS: Final = ("accepted", "refused")
_SETTLED: Final = 4
"""Times that all places must have been taken before their use is measured."""


def _rate(case: Case, accepted: Sequence[float]) -> float:
    """Submits taken a second, without the beginning: all that are sent at once at the start end together as well."""
    first = _SETTLED * case.allowed.get("max_in_flight", 1)
    return (len(accepted) - first) / (accepted[-1] - accepted[first - 1])
