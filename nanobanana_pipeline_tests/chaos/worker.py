"""The process that is killed: refreshes the catalogue and works every shard off, again and again, without Dagster.

Configured by NANOBANANA_* like the product. As a process it prints `ready` when its imports are done and begins when it
is sent a line (or the end of its input), so that several begin at once; it prints `idle` when nothing is left to do.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.client import HttpProvider, Timeouts
from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.shard_run import RunOptions, generate_shard
from nanobanana_pipeline.generation.stopping import StopSwitch
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline.ledger.work import ShardWork
from nanobanana_pipeline.settings import load_settings

# A submit has as long as any takes on a machine with far more to do than it can: one that is only slow is not lost.
PATIENCE = Patience(
    submit_backoff_s=0.02,
    download_backoff_s=0.02,
    not_found_s=1.0,
    lease_s=6.0,
    submit_timeout_s=10.0,
    margin_s=0.5,
)
TIMEOUTS = Timeouts(connect_s=5.0, submit_s=10.0, poll_s=10.0, download_s=60.0, idle_s=10.0)


_SHARDS_AT_ONCE = 4
"""As many as `nanobanana run` has: the last tasks of a shard would otherwise keep everyone waiting."""


def work_off(run: str, patience: Patience, timeouts: Timeouts, *, limit: int | None = None) -> None:
    """Work until nothing is left that a run could do something about; `limit` is of new attempts in each shard."""
    settings = load_settings()
    options = RunOptions(run, run, run, limit=limit, patience=patience)
    stop = StopSwitch()
    with Workspace.open(settings) as workspace:
        mend_tables(workspace)
        refresh(workspace)

        def work_on(shard: str) -> None:
            if not stop.thrown:
                generate_shard(
                    workspace,
                    shard,
                    lambda: HttpProvider(
                        workspace.spec, settings.api_key, base_url=settings.base_url, timeouts=timeouts
                    ),
                    options,
                    stop=stop,
                )

        work = workspace.ledger.shard_work()
        # Where nothing may be begun, only what is open is a reason to go there.
        shards = [each.shard for each in work if (_open(each) if limit == 0 else each.left)]
        with stop.on_signals(), ThreadPoolExecutor(_SHARDS_AT_ONCE) as threads:
            list(threads.map(work_on, shards))
    _say("idle")


def _open(work: ShardWork) -> int:
    return sum(work.states.get(state, 0) for state in (ItemState.OPEN, ItemState.OVERDUE))


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _say("ready")
    sys.stdin.readline()
    try:
        work_off(sys.argv[1], PATIENCE, TIMEOUTS)
    except UserError as error:
        sys.exit(f"worker: {error}")
