"""What a run has done so far, counted as it happens; for progress, reports and metadata."""

from dataclasses import dataclass, field

from nanobanana_pipeline.model_specs.kinds import ErrorKind


@dataclass(slots=True)
class Tally:
    """What a run has done so far; money in micro-dollars."""

    submitted: int = 0
    """Attempts that the provider accepted: `submitted_at` in the table `attempts`. Not those that it refused or that
    got no answer."""
    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    overdue: int = 0
    deferred: int = 0
    images: int = 0
    polls: int = 0
    refused_submits: int = 0
    cost_micros: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    failures_by_kind: dict[str, int] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """Items that the run is done with, well or not."""
        return self.succeeded + self.failed + self.unknown + self.overdue + self.deferred

    def failed_with(self, kind: ErrorKind) -> None:
        """Count an item that ended without an image."""
        self.failed += 1
        self.failures_by_kind[kind] = self.failures_by_kind.get(kind, 0) + 1
