"""What one command did, and how things stand after it. Knows no Dagster: a run with nothing to do needs none."""

from dataclasses import dataclass, field

from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.ledger.ledger import Stamp
from nanobanana_pipeline.reporting.costs import CostSummary


@dataclass(slots=True)
class Outcome:
    """What a command did, and how things stand after it. Money in integer micro-dollars."""

    stamp: Stamp
    output: str
    log: str | None = None
    """The log file of its Dagster runs; None when it needed none."""
    tally: Tally = field(default_factory=Tally)
    """What was done by this command."""
    standing: CostSummary | None = None
    """Where all the work stands (of the catalogue, if one was named); None when a run ended before it was known."""
    rejected_rows: int = 0
    shards: list[str] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Runs that failed for a reason of their own, in a line each."""
    signal_number: int | None = None
    duration_s: float = 0.0

    @property
    def needs_attention(self) -> bool:
        """Whether some item is neither done nor simply waiting for a larger limit."""
        items = self.standing.items if self.standing else {}
        return any(items.get(status) for status in ("failed", "unknown", "deferred", "in_flight"))
