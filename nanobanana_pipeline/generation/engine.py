"""The loop that works a shard off: first what is open, then what is new, bounded and stoppable at any moment.

One asyncio task per item in flight and none for those that wait, so memory goes with what is in flight and not with the
shard. What happens to one item is `lifecycle`'s business.
"""

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from nanobanana_pipeline.generation.admissions import Admissions, StoppedError
from nanobanana_pipeline.generation.client import Provider
from nanobanana_pipeline.generation.delivery import Delivery
from nanobanana_pipeline.generation.filing import THREADS, Filing, VerifyMode
from nanobanana_pipeline.generation.journal import Journal
from nanobanana_pipeline.generation.lifecycle import Lifecycle, SettledElsewhereError
from nanobanana_pipeline.generation.limits import ProviderGate
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.policy import Policy
from nanobanana_pipeline.generation.polling import PollSchedule
from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.entries import Attempt, Candidate, Cause, Worker
from nanobanana_pipeline.ledger.leases import Lease
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.states import UNDECIDED_STATES, AttemptState
from nanobanana_pipeline.ledger.work import Rerun, TakeOver, take_over
from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.storage.images import ImageStore

_DOWNLOADS_AT_ONCE: Final = 32
_STARTED_AT_ONCE: Final = 50
_REMEMBER_EVERY_S: Final = 15.0
_ASK_HOLDERS_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What one run of the engine may do. Money in micro-dollars, times in seconds."""

    max_in_flight: int
    policy: Policy
    caps: Caps = field(default_factory=Caps)
    verify: VerifyMode = "full"
    limit: int | None = None
    """Items that may be begun, at most, by this run and those that it repeats; None is no limit."""
    rerun: Rerun | None = None
    items: tuple[str, ...] = ()
    """The only items (by item_id) that may be begun; none given is all of them."""
    patience: Patience = field(default_factory=Patience)


class Engine:
    """Works one shard off. Make it and `run` it inside a running event loop."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        provider: Provider,
        images: ImageStore,
        spec: ModelSpec,
        worker: Worker,
        lease: Lease,
        gate: ProviderGate,
        options: EngineOptions,
        tally: Tally,
    ) -> None:
        self._ledger = ledger
        self._spec = spec
        self._worker = worker
        self._lease = lease
        self._options = options
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        # Set when the last task has ended, and when a stop is asked for.
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Twice the open tasks: while one is delivered, another may be generated in its place.
        self._slots = asyncio.Semaphore(2 * options.max_in_flight)
        self._begun = 0
        # What may be sent again, by item: given up one by one as their items' turns come, so none beyond the limit.
        self._held: dict[str, Attempt] = {}
        self._clock_offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._schedule = PollSchedule.shared(ledger.database.place, spec.name, partial(ledger.latencies, spec.name))
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="images")
        self._admissions = Admissions(ledger, worker, options.caps, gate, patience_s=options.policy.task_deadline_s)
        self._lifecycle = Lifecycle(
            ledger=ledger,
            provider=provider,
            delivery=Delivery(
                provider,
                Filing(images, spec, self._executor, verify=options.verify),
                patience=options.patience,
                at_once=_DOWNLOADS_AT_ONCE,
            ),
            admissions=self._admissions,
            gate=gate,
            schedule=self._schedule,
            lease=lease,
            spec=spec,
            policy=options.policy,
            patience=options.patience,
            tally=tally,
            journal=Journal(worker.run_id),
            stopping=self._stopping,
            now_ms=self._now_ms,
        )

    @property
    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask for a graceful stop; safe from any thread and from a signal handler."""
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._begin_stop)

    async def run(self, shard: str) -> None:
        """Work the shard off. Raises `RunStoppedError` or `LeaseLostError` after a graceful stop."""
        admitting = asyncio.create_task(self._admissions.serve(), name="admissions")
        helpers = [
            asyncio.create_task(self._heartbeat(), name="heartbeat"),
            asyncio.create_task(self._remember(), name="remember"),
        ]
        for helper in (admitting, *helpers):
            helper.add_done_callback(self._on_done)
        try:
            with suppress(StoppedError):
                # Open attempts first: what is already paid for comes before what would have to be.
                await self._finish_open(shard)
                await self._begin_new(shard)
                await self._wait_for_holders(shard)
                for attempt in self._held.values():
                    self._lifecycle.leave_held(attempt)
        except asyncio.CancelledError:
            # Cancelled from outside: the same as a stop, then on with the cancellation.
            self._begin_stop()
            await asyncio.shield(self._settle_down())
            raise
        finally:
            await self._settle_down()
            # Not cancelled: what the ledger has yet to admit, it gives back.
            self._admissions.stop()
            await asyncio.gather(admitting, return_exceptions=True)
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await asyncio.to_thread(self._save_latencies)
            self._executor.shutdown(wait=True)
        if self._failure is not None:
            raise self._failure

    # --- phases ------------------------------------------------------------------------------------------------------

    async def _finish_open(self, shard: str) -> TakeOver:
        """Take over what gone workers left open in the shard, and finish it."""
        taken = await self._take_over(shard)
        for number, attempt in enumerate(taken.attempts, 1):
            self._start(self._finish_one(attempt))
            if number % _STARTED_AT_ONCE == 0:
                # With ten thousand taken over at once, no question left for three seconds: all were being begun first.
                await asyncio.sleep(0)
        await self._all_done()
        return taken

    async def _begin_new(self, shard: str) -> None:
        if self._options.limit is not None:
            # A run that was killed is started again with all that it was asked for, and a re-execution copies it.
            self._begun = await asyncio.to_thread(self._ledger.items_begun, shard, self._worker.root_run_id)
        await self._feed(shard, None)
        if self._options.rerun is not None:
            await self._all_done()
            await self._feed(shard, self._options.rerun)
        await self._all_done()

    async def _feed(self, shard: str, rerun: Rerun | None) -> None:
        """Start the shard's waiting items, a page at a time, as slots come free."""
        after: Candidate | None = None
        while True:
            page = await asyncio.to_thread(
                self._ledger.candidates,
                shard,
                after=after,
                rerun=rerun,
                root_run_id=self._worker.root_run_id,
                items=self._options.items,
                undecided=bool(self._held),
            )
            if not page:
                return
            for candidate in page:
                if candidate.state in UNDECIDED_STATES and candidate.item_id not in self._held:
                    continue
                await self._slots.acquire()
                if self._stopping.is_set():
                    self._slots.release()
                    raise StoppedError
                if self._options.limit is not None and self._begun >= self._options.limit:
                    self._slots.release()
                    return
                self._begun += 1
                self._start(self._begin_one(candidate))
            after = page[-1]

    async def _wait_for_holders(self, shard: str) -> None:
        """Where all that is left is held by a worker that seems to be dying, wait until its work may be taken over.

        A worker that renews its lease is alive and finishes its own work; it is left to it.
        """
        first_seen: dict[str, int] = {}
        while True:
            taken = await self._finish_open(shard)
            dying = {
                owner for owner, expires in taken.holders.items() if first_seen.setdefault(owner, expires) == expires
            }
            if not dying:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK_HOLDERS_EVERY_S):
                    await self._stopping.wait()
            if self._stopping.is_set():
                raise StoppedError

    async def _take_over(self, shard: str) -> TakeOver:
        taken = await self._ledger.post(
            lambda postings: take_over(
                postings, shard, self._worker.owner, grace_s=self._options.patience.take_over_grace_s
            )
        )
        # Ages are reckoned by the database's clock: this host's own may differ by minutes.
        self._clock_offset_ms = taken.now - time.monotonic() * 1000
        return taken

    # --- items -------------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def _finish_one(self, attempt: Attempt) -> None:
        async with self._slots:
            self._tally.in_flight += attempt.state is AttemptState.SUBMITTED
            if await self._lifecycle.finish(attempt) is Cause.RESUBMIT:
                self._held[attempt.item_id] = attempt

    async def _begin_one(self, candidate: Candidate) -> None:
        try:
            held = self._held.pop(candidate.item_id, None) if candidate.state in UNDECIDED_STATES else None
            made = await self._lifecycle.begin(candidate, held)
            self._begun -= not made
        finally:
            self._slots.release()

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._wake.set()
        if (
            task.cancelled()
            or (error := task.exception()) is None
            or isinstance(error, StoppedError | SettledElsewhereError)
        ):
            return
        # The first reason is the reason; what follows from it is noise.
        if self._failure is None:
            self._failure = error
        self._begin_stop()

    async def _all_done(self) -> None:
        while self._tasks and not self._stopping.is_set():
            self._wake.clear()
            await self._wake.wait()
        if self._stopping.is_set():
            raise StoppedError

    # --- stopping ----------------------------------------------------------------------------------------------------

    def _begin_stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.set()
        # For whoever waits to begin another: all others may be held by submits in the air.
        self._slots.release()
        self._admissions.stop()

    async def _settle_down(self) -> None:
        """Give submits that are in the air a moment to be answered; what is left stays as the ledger has it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._options.patience.stop_grace_s)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._lease.heartbeat_s)
            await asyncio.to_thread(self._lease.renew)

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(_REMEMBER_EVERY_S)
            await asyncio.to_thread(self._save_latencies)

    def _save_latencies(self) -> None:
        for resolution, latencies in self._schedule.drain().items():
            self._ledger.remember_latencies(self._spec.name, resolution, latencies)

    def _now_ms(self) -> int:
        return int(time.monotonic() * 1000 + self._clock_offset_ms)
