"""What to do about outcomes that people decide differently: the settings and the launchpad, as the engine sees them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do about outcomes that a person may decide differently."""

    max_attempts: int
    task_deadline_s: float
    on_unknown: Literal["hold", "resubmit"]
    on_unusable: Literal["keep", "regenerate"]
    resubmit_unknown: bool
    """A person's word about what earlier runs left without an answer, not about what this one sends."""
    run_id: str
    root_run_id: str
