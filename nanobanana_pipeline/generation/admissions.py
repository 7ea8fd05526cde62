"""The one door to the provider: every submit asks here first, and goes only when the ledger has entered it.

Items queue here holding nothing but memory. Each round asks the ledger for as many as fit under the cap and the
provider's limits, in one transaction, and lets those go at once.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from nanobanana_pipeline.generation.limits import ProviderGate
from nanobanana_pipeline.ledger.budget import Caps, Shortage
from nanobanana_pipeline.ledger.entries import AdmissionRequest, Attempt, Blocked, BlockedBy, Candidate, Stale, Worker
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.postings import Postings, Verdict
from nanobanana_pipeline.ledger.states import AttemptState

_BATCH: Final = 64
_LONGEST_WAIT_S: Final = 5.0
_STILL_S: Final = 60.0
"""Two questions that found no room within this time (longer than any pause of our own): there was none in between."""


class StoppedError(Exception):
    """The run is ending: nothing more is submitted."""


class DeferredError(Exception):
    """The cap has no room for this item in this run, and nothing that is open could make any."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(str(shortage))


@dataclass(slots=True)
class _Waiting:
    request: AdmissionRequest
    future: "asyncio.Future[Attempt | Stale]"


class Admissions:
    """Queues admissions and passes them to the ledger in batches; run `serve` as a task."""

    def __init__(self, ledger: Ledger, worker: Worker, caps: Caps, gate: ProviderGate, *, patience_s: float) -> None:
        self._ledger = ledger
        self._worker = worker
        self._caps = caps
        self._gate = gate
        # However many reservations are open elsewhere, they settle within a task's longest life or not at all.
        self._patience_s = patience_s
        # From when, and until when, there was no room under the cap whenever the ledger was asked. It is everybody's:
        # with a wait of its own for each batch, a shard took hours to find that there was none.
        self._no_room_since = self._no_room_until = -math.inf
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._stopped = False

    async def admit(self, request: AdmissionRequest) -> Attempt | Stale:
        """Wait for admission. Raises `DeferredError` or `StoppedError`. An `Attempt` must be sent at once."""
        if self._stopped:
            raise StoppedError
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._changed.set()
        return await waiting.future

    def room_made(self) -> None:
        """An attempt has left the provider: ask the ledger again now, rather than when the wait is over."""
        if self._queue:
            self._changed.set()

    def stop(self) -> None:
        """Let nothing more through."""
        self._stopped = True
        self._changed.set()
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.future.done():
                waiting.future.set_exception(StoppedError())

    async def serve(self) -> None:
        """Pass queued requests to the ledger until stopped."""
        wait_s: float | None = None
        while not self._stopped:
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            wait_s = await self._round() if self._queue else None

    async def _round(self) -> float | None:
        """Ask for the head of the queue; returns how long to wait then, None for until something changes."""
        batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
        batch = [waiting for waiting in batch if not waiting.future.done()]
        requests = [waiting.request for waiting in batch]

        def posting(postings: Postings) -> list[Verdict]:
            return postings.admit(requests, self._worker, self._caps, self._gate)

        try:
            verdicts = await self._ledger.post(posting) if batch else []
        except BaseException as error:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error if isinstance(error, Exception) else StoppedError())
            raise
        blocked: list[tuple[_Waiting, Blocked]] = []
        for waiting, verdict in zip(batch, verdicts, strict=True):
            if isinstance(verdict, Blocked):
                blocked.append((waiting, verdict))
            elif self._stopped or waiting.future.done():
                await self._give_back(waiting.request.candidate, verdict)
                if not waiting.future.done():
                    waiting.future.set_exception(StoppedError())
            else:
                self._no_room_until = -math.inf
                waiting.future.set_result(verdict)
        return self._put_back(blocked)

    def _put_back(self, blocked: list[tuple[_Waiting, Blocked]]) -> float | None:
        now = asyncio.get_running_loop().time()
        wait_s: float | None = None
        for waiting, verdict in reversed(blocked):
            if waiting.future.done():
                continue
            if self._stopped:
                waiting.future.set_exception(StoppedError())
                continue
            shortage = verdict.shortage
            if verdict.by is BlockedBy.BUDGET and shortage is not None:
                if now - self._no_room_until > _STILL_S:
                    self._no_room_since = now
                self._no_room_until = now
                if not shortage.may_ease or now - self._no_room_since > self._patience_s:
                    waiting.future.set_exception(DeferredError(shortage))
                    continue
            self._queue.appendleft(waiting)
            wait_s = verdict.wait_s if wait_s is None else min(wait_s, verdict.wait_s)
        if wait_s is None and self._queue:
            return 0.0
        return None if wait_s is None else min(wait_s, _LONGEST_WAIT_S)

    async def _give_back(self, candidate: Candidate, verdict: Attempt | Stale) -> None:
        """Undo an admission that nobody is left to use: it was never sent."""
        if isinstance(verdict, Attempt):
            await self._ledger.post(
                lambda postings: postings.move(
                    verdict,
                    AttemptState.REFUSED,
                    then=candidate.state_if_refused,
                    error_kind="retryable",
                    error_message="not sent: the run was stopped first",
                )
            )
