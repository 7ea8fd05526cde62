"""One run over one shard, whole: lease, engine, tables; what Dagster's generation asset calls and tests call alike."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import uvloop

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.client import Provider
from nanobanana_pipeline.generation.engine import Engine, EngineOptions
from nanobanana_pipeline.generation.evidence import refuse_older_ledger
from nanobanana_pipeline.generation.intake import MOSTLY
from nanobanana_pipeline.generation.lifecycle import RunStoppedError
from nanobanana_pipeline.generation.limits import ProviderGate
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.policy import Policy
from nanobanana_pipeline.generation.publishing import publish_shard
from nanobanana_pipeline.generation.stopping import RunInterruptedError, StopSwitch
from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import statement
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.entries import Worker
from nanobanana_pipeline.ledger.leases import Lease, LeaseLostError
from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline.ledger.work import Rerun
from nanobanana_pipeline.memory import spare_what_is_loaded
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.settings import Settings

_PROGRESS_EVERY_S: Final = 1.0

OpenProvider = Callable[[], AbstractAsyncContextManager[Provider]]
"""Opens the provider inside the engine's event loop: an HTTP client belongs to the loop it was made in."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What one run may do beyond the settings.

    `run_scope` is the budget scope that all shards of one command share; `plan_hash` is kept with each attempt.
    """

    run_id: str
    root_run_id: str
    run_scope: str
    account: str = "default"
    limit: int | None = None
    rerun: Rerun | None = None
    items: tuple[str, ...] = ()
    resubmit_unknown: bool = False
    allow_duplicates: bool = False
    max_cost_micros: int | None = None
    plan_hash: str | None = None
    patience: Patience = field(default_factory=Patience)


@dataclass(slots=True)
class ShardReport:
    """What a run did, and how the shard stands now."""

    shard: str
    tally: Tally
    states: dict[ItemState, int] = field(default_factory=dict)
    duration_s: float = 0.0
    interrupted: bool = False
    failure: BaseException | None = None


def generate_shard(
    workspace: Workspace,
    shard: str,
    open_provider: OpenProvider,
    options: RunOptions,
    *,
    stop: StopSwitch | None = None,
    on_progress: Callable[[Tally], None] | None = None,
    on_report: Callable[[ShardReport], None] | None = None,
) -> ShardReport:
    """Work a shard off and write its tables, whatever happens on the way.

    `on_report` is called with the report before anything is raised. Raises `RunInterruptedError` after a graceful
    stop, and `UserError` when the provider stops the run (a wrong key, an empty account), the lease was lost, the
    catalogue seems to be renamed, or the ledger is older than the tables.
    """
    spare_what_is_loaded()
    stop = stop or StopSwitch()
    began = time.monotonic()
    report = ShardReport(shard, Tally())
    workspace.tables.check_commits()
    refuse_older_ledger(workspace, [shard])
    if not options.allow_duplicates:
        _refuse_renamed(workspace, shard)
    with stop.on_signals():
        seconds = options.patience.lease_s
        lease = workspace.ledger.lease(shard, options.run_id, account=options.account, seconds=seconds)
        lease.acquire()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                engine = runner.run(
                    _work(workspace, shard, open_provider, options, lease, report.tally, stop, on_progress)
                )
            report.interrupted = engine.stopped and stop.thrown
        except (RunStoppedError, LeaseLostError, UserError) as error:
            report.failure = error
        finally:
            lease.release()
            publish_shard(workspace, shard)
            report.states = _states(workspace, shard)
            report.duration_s = time.monotonic() - began
    if on_report is not None:
        on_report(report)
    if isinstance(report.failure, RunStoppedError):
        raise UserError(_explained(report.failure)) from None
    if isinstance(report.failure, LeaseLostError):
        raise UserError(
            f"{report.failure} (did this machine sleep, or the ledger not answer?); nothing was sent after that: "
            "run again, and it goes on from there"
        ) from None
    if report.failure is not None:
        raise report.failure
    if report.interrupted:
        raise RunInterruptedError(f"shard {shard} was stopped; the next run goes on from there")
    return report


async def _work(
    workspace: Workspace,
    shard: str,
    open_provider: OpenProvider,
    options: RunOptions,
    lease: Lease,
    tally: Tally,
    stop: StopSwitch,
    on_progress: Callable[[Tally], None] | None,
) -> Engine:
    settings = workspace.settings
    async with open_provider() as provider:
        engine = Engine(
            ledger=workspace.ledger,
            provider=provider,
            images=workspace.images,
            spec=workspace.spec,
            worker=Worker(lease.owner, options.run_id, options.root_run_id, options.run_scope, options.plan_hash),
            lease=lease,
            gate=ProviderGate(
                options.account,
                max_in_flight=settings.max_in_flight,
                requests_per_minute=settings.requests_per_minute,
            ),
            options=engine_options(settings, options),
            tally=tally,
        )
        reporter = asyncio.create_task(_report_progress(tally, on_progress))
        try:
            with stop.calling(engine.stop):
                await engine.run(shard)
        finally:
            reporter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporter
        return engine


def engine_options(settings: Settings, options: RunOptions) -> EngineOptions:
    """The engine's options from the settings and what a run asks for besides."""
    run_caps = [cap for cap in (_micros(settings.budget_run_usd), options.max_cost_micros) if cap is not None]
    return EngineOptions(
        max_in_flight=settings.max_in_flight,
        policy=Policy(
            max_attempts=settings.max_attempts,
            task_deadline_s=float(settings.task_deadline_s),
            on_unknown=settings.on_unknown,
            on_unusable=settings.on_unusable,
            resubmit_unknown=options.resubmit_unknown,
            run_id=options.run_id,
            root_run_id=options.root_run_id,
        ),
        caps=Caps(
            day=_micros(settings.budget_usd),
            catalogue=_micros(settings.budget_catalogue_usd),
            run=min(run_caps, default=None),
        ),
        verify=settings.verify,
        limit=options.limit,
        rerun=options.rerun,
        items=options.items,
        patience=options.patience,
    )


async def _report_progress(tally: Tally, on_progress: Callable[[Tally], None] | None) -> None:
    while on_progress is not None:
        await asyncio.sleep(_PROGRESS_EVERY_S)
        on_progress(tally)


def _refuse_renamed(workspace: Workspace, shard: str) -> None:
    """A renamed file is a new catalogue to us: better to ask than to pay for all of it again."""
    with workspace.ledger.database.read() as connection:
        catalogue = statement.catalogue_of_shard(connection, shard)
        # The shard first: in all of a large catalogue it takes seconds, and every shard asks.
        if not statement.paid_elsewhere(connection, catalogue, shard=shard)[1]:
            return
        waiting, paid, elsewhere = statement.paid_elsewhere(connection, catalogue)
    if waiting and paid > waiting * MOSTLY:
        raise UserError(
            f"catalogue {catalogue}: {paid} of its {waiting} waiting requests already have images under the name "
            f"{elsewhere}; if the file was renamed, name it back; to pay for them again, `nanobanana run "
            "--allow-duplicates`, or allow_duplicates in the launchpad"
        )


def _states(workspace: Workspace, shard: str) -> dict[ItemState, int]:
    return next((work.states for work in workspace.ledger.shard_work(shard=shard)), {})


def _explained(stopped: RunStoppedError) -> str:
    what_to_do = {
        ErrorKind.AUTH: "check NANOBANANA_API_KEY",
        ErrorKind.BALANCE: "top up the account",
    }.get(stopped.kind, "see the provider's message")
    return (
        f"the provider stopped the run ({stopped.kind}): {stopped}; "
        f"{what_to_do} and run again, nothing was charged for it"
    )


def _micros(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd.scaleb(6))
