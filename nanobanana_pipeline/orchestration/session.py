"""What all the Dagster runs of one process share: one stop, one budget scope, and who is told of progress.

The command line runs many shards in one process and hands its session to `build_defs`; a run in a process of its own
has a session of its own. Nothing of Dagster's belongs here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.shard_run import ShardReport
from nanobanana_pipeline.generation.stopping import StopSwitch
from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.reporting.approval import Ruling


@dataclass(slots=True)
class Session:
    """Shared by every run of a process; the callbacks are called from the threads that the runs are in."""

    stop: StopSwitch = field(default_factory=StopSwitch)
    on_progress: Callable[[str, Tally], None] | None = None
    """Told of a shard's tally about once a second."""
    on_report: Callable[[ShardReport], None] | None = None
    """Told of each shard's report once its tables are written, before anything is raised."""
    run_scope: str | None = None
    """The budget scope that the runs share; None: each run, or backfill, has its own."""
    ruling: Ruling | None = None
    """What the runs may pay for, when that was decided for all of them; None: each asks for itself."""
    logs_to_file: bool = False
    """Whether the engine's lines go where the process's logging leads; else to a run's own standard error."""
    showing: Lock = field(default_factory=Lock)
    """Held while a shard that is done is read back, checked and drawn. That takes some 20 MB for a moment, and several
    shards end at once: of a run of 100,000 items that was the peak, a sixth above one of 10,000."""
    failure: UserError | None = None
    """The first error that is the user's to mend; what follows from it is noise."""

    def progressed(self, shard: str, tally: Tally) -> None:
        """Pass a tally on."""
        if self.on_progress is not None:
            self.on_progress(shard, tally)

    def reported(self, report: ShardReport) -> None:
        """Pass a report on."""
        if self.on_report is not None:
            self.on_report(report)

    def failed(self, error: UserError) -> None:
        """Keep the first error, and stop the other runs: what stops one (a wrong key, an empty account) stops all."""
        if self.failure is None:
            self.failure = error
        self.stop.throw()
