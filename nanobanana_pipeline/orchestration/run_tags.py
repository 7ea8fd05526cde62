"""What is noted on a run of generation, for those who look for it later: who started it, and how it ended."""

from enum import StrEnum
from typing import Final

import dagster as dg

RUN_SCOPE_TAG: Final = "nanobanana/run_scope"
"""May be set on runs that share one cap: whatever they spend counts together against `max_cost_usd`."""

ENDED_TAG: Final = "nanobanana/ended"

STARTED_BY_TAG: Final = "nanobanana/started_by"
"""Which sensor or schedule asked for a run."""

SENT_TAG: Final = ".dagster/nanobanana_sent"
"""On runs that are handed to workers: when they were last (seconds since the epoch), and how often before."""


class Ended(StrEnum):
    """How a run ended that was not left to end by itself. A run without this note, and without success, was killed."""

    BY_A_PERSON = "stopped by a person"
    BY_A_SIGNAL = "stopped by a signal"
    BY_AN_ERROR = "an error that a person has to mend"
    FOR_AN_APPROVAL = "to wait for a person's approval"

    def of(self, run_id: str) -> dict[str, str]:
        """The note on this run: a re-execution bears all of its parent's tags, and has not ended like that itself."""
        return {ENDED_TAG: f"{self} (run {run_id})"}

    @classmethod
    def noted_on(cls, run: dg.DagsterRun) -> "Ended | None":
        """What the run noted of its own end."""
        noted = run.tags.get(ENDED_TAG, "")
        own = f" (run {run.run_id})"
        return cls(noted.removesuffix(own)) if noted.endswith(own) else None
