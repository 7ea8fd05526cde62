"""One item's way from admission to its images: submit, poll, settle, deliver, and what to do when any of it goes wrong.

Each step is entered in the ledger before the next begins. What an error *is* was decided in `errors`; what follows
from it is decided here and nowhere else.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any, Final

import orjson

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.admissions import Admissions, DeferredError, StoppedError
from nanobanana_pipeline.generation.answers import Accepted, Polled, PollError, Refused, Task, Unknown
from nanobanana_pipeline.generation.client import Provider
from nanobanana_pipeline.generation.delivery import Delivery
from nanobanana_pipeline.generation.errors import RETRY_SUBMIT, STOPS_RUN, kind_of_task_error
from nanobanana_pipeline.generation.journal import Journal
from nanobanana_pipeline.generation.limits import ProviderGate, backoff_s
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.generation.policy import Policy
from nanobanana_pipeline.generation.polling import Latencies, PollSchedule
from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.ledger.entries import AdmissionRequest, Attempt, Candidate, Cause, Stale
from nanobanana_pipeline.ledger.leases import Lease, LeaseLostError
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.postings import Postings
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.pricing import Usage, cost_of, reservation
from nanobanana_pipeline.model_specs.spec import ModelSpec

_RENEWALS: Final = 3
"""A machine may be so busy that a lease runs out again between its renewal and the check."""

_SEEN_AT_ONCE: Final = 0.8
"""What counts of the age of a task that was found ended at the first question: it may have ended any time before."""

_LOOK_AGAIN_S: Final = 0.5
"""How often a task that waits for what others tell looks whether they have."""

_NOT_KNOWN: Final = "the provider does not know the task"


class RunStoppedError(Exception):
    """Every further request would fail in the same way (a wrong key, an empty account): the run ends, saying so."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class SettledElsewhereError(Exception):
    """Another worker, or a person, has settled the attempt meanwhile: nothing is left to do for it here."""


class Lifecycle:
    """Carries items through; one instance serves all items of an engine."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        provider: Provider,
        delivery: Delivery,
        admissions: Admissions,
        gate: ProviderGate,
        schedule: PollSchedule,
        lease: Lease,
        spec: ModelSpec,
        policy: Policy,
        patience: Patience,
        tally: Tally,
        journal: Journal,
        stopping: asyncio.Event,
        now_ms: Callable[[], int],
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._delivery = delivery
        self._admissions = admissions
        self._gate = gate
        self._schedule = schedule
        self._lease = lease
        self._spec = spec
        self._policy = policy
        self._patience = patience
        self._tally = tally
        self._journal = journal
        self._stopping = stopping
        self._now_ms = now_ms

    # --- the whole way -----------------------------------------------------------------------------------------------

    async def begin(self, candidate: Candidate, held: Attempt | None = None) -> bool:
        """Make an attempt for an item, and more after failures that deserve it. False when it was not ours to make.

        `held` is the item's attempt of which `finish` said that it may be sent again: it is given up first.
        """
        made = False
        if held is not None:
            await self._give_up(held)
            candidate = replace(candidate, state=ItemState.PENDING)
            # It counts from here, whatever comes of it: what was given up would be paid for by any later run.
            made = True
        following: Candidate | None = candidate
        while following is not None:
            candidate, following = following, None
            try:
                attempt = await self._submit(candidate)
            except DeferredError as deferred:
                await self._defer(candidate, str(deferred))
                return made
            if isinstance(attempt, Stale):
                return made
            made = True
            cause = await self.finish(attempt)
            if cause is Cause.RESUBMIT:
                await self._give_up(attempt)
            if cause is not None:
                failures = candidate.failures + (cause is Cause.RETRY)
                following = replace(
                    candidate, attempts=attempt.attempt, state=ItemState.PENDING, cause=cause, failures=failures
                )
        return made

    async def finish(self, attempt: Attempt) -> Cause | None:
        """Bring an open attempt to its end; returns why another should follow, if one should.

        With `Cause.RESUBMIT` the attempt is still held: it is given up only by what takes its place (see `begin`).
        """
        if attempt.state is AttemptState.UNKNOWN:
            return self._held(attempt)
        if attempt.state in {AttemptState.SUBMITTED, AttemptState.OVERDUE}:
            answer = await self._poll_to_the_end(attempt)
            if isinstance(answer, PollError):
                # One that could not be asked about may have its image by now: to send it again might pay twice.
                return self._held(attempt, asked_in_vain=answer.kind is not ErrorKind.NOT_FOUND)
            if answer.task.state == "running":
                return self._held(attempt)
            if answer.task.state == "failed":
                return await self._failed(attempt, answer.task)
            await self._completed(attempt, answer.task)
        if attempt.state is AttemptState.COMPLETED:
            return await self._deliver(attempt)
        # A submit that was answered at once with a failure ends here, too.
        return self._again_after(attempt)

    async def _defer(self, candidate: Candidate, note: str) -> None:
        await self._ledger.post(lambda postings: postings.defer([candidate.item_id], note))
        self._journal.deferred(candidate.shard, note)
        self._tally.deferred += 1

    # --- submit ------------------------------------------------------------------------------------------------------

    async def _submit(self, candidate: Candidate) -> Attempt | Stale:
        request = Request.from_json(candidate.body)
        today = datetime.fromtimestamp(self._now_ms() / 1000, UTC).date()
        reserve = reservation(self._spec, len(request.prompt), len(request.image_urls), request.resolution, today)
        unsent = candidate.state_if_refused
        again: Attempt | None = None
        for number in range(1, self._patience.submit_tries + 1):
            attempt = await self._admissions.admit(AdmissionRequest(candidate, reserve, again))
            if isinstance(attempt, Stale):
                return again or attempt
            try:
                await self._hold_lease()
            except LeaseLostError:
                await self._refuse(attempt, Refused(ErrorKind.RETRYABLE, None, "not sent: lease lost"), unsent)
                raise
            answer = await self._send(attempt, request)
            match answer:
                case Accepted(task):
                    await self._accepted(attempt, task)
                    return attempt
                case Unknown():
                    await self._lost(attempt, answer)
                    return attempt
                case Refused(kind=kind) if kind in STOPS_RUN:
                    await self._refuse(attempt, answer, unsent)
                    raise RunStoppedError(kind, answer.message)
                case Refused(kind=kind) if kind in RETRY_SUBMIT:
                    last = number == self._patience.submit_tries
                    await self._pushed_back(attempt, answer, ItemState.DEFERRED if last else unsent)
                case Refused(kind=kind):
                    await self._refuse(attempt, answer, ItemState.FAILED)
                    self._tally.failed_with(kind)
                    return attempt
            again = attempt
            if number < self._patience.submit_tries:
                await self._pause(max(answer.retry_after_s or 0.0, self._backoff_s(number)))
        self._tally.deferred += 1
        return again or Stale()

    async def _send(self, attempt: Attempt, request: Request) -> Accepted | Refused | Unknown:
        """Send, and wait for the answer even when the run is being stopped: a lost answer may be a lost image."""
        answer = await self._provider.submit(request, attempt.attempt_id)
        tries = 1
        while isinstance(answer, Unknown) and self._spec.idempotency_honoured and tries < self._patience.submit_tries:
            # Only where the provider promises that one key is one task: then asking again is not paying again.
            await asyncio.sleep(self._backoff_s(tries))
            self._lease.check()
            answer = await self._provider.submit(request, attempt.attempt_id)
            tries += 1
        return answer

    async def _hold_lease(self) -> None:
        for _ in range(_RENEWALS):
            try:
                self._lease.check()
            except LeaseLostError:
                # The ledger was away for longer than the lease: it is still ours if nobody has taken it over.
                await asyncio.to_thread(self._lease.renew)
            else:
                return
        self._lease.check()

    async def _accepted(self, attempt: Attempt, task: Task) -> None:
        self._gate.accepted()
        self._tally.submitted += 1
        self._tally.in_flight += 1
        if task.state == "running":
            await self._move(
                attempt,
                AttemptState.SUBMITTED,
                task_id=task.id,
                first_status=task.status_word,
                submitted_at=self._now_ms(),
            )
            return
        facts: dict[str, Any] = {
            "task_id": task.id,
            "first_status": task.status_word,
            "submitted_at": self._now_ms(),
        }
        if task.state == "completed":
            await self._completed(attempt, task, **facts)
        else:
            await self._record_failure(attempt, task, **facts)

    async def _lost(self, attempt: Attempt, answer: Unknown) -> None:
        await self._move(
            attempt,
            AttemptState.UNKNOWN,
            first_status=_http(answer.http_status),
            error_kind=ErrorKind.UNKNOWN_OUTCOME,
            error_message=answer.reason,
        )

    async def _pushed_back(self, attempt: Attempt, answer: Refused, then: ItemState) -> None:
        self._tally.refused_submits += 1
        await self._refuse(attempt, answer, then)
        gate = self._gate
        await self._ledger.post(
            lambda postings: postings.teach(
                gate.account, lambda state, now: gate.pushed_back(state, now, answer.retry_after_s)
            )
        )

    async def _refuse(self, attempt: Attempt, answer: Refused, then: ItemState) -> None:
        await self._move(
            attempt,
            AttemptState.REFUSED,
            then=then,
            note=answer.message if then is ItemState.DEFERRED else None,
            first_status=_http(answer.http_status),
            error_kind=answer.kind,
            error_code=answer.code,
            error_message=answer.message,
        )

    def _held(self, attempt: Attempt, *, asked_in_vain: bool = False) -> Cause | None:
        """An unknown or overdue outcome: nothing more is sent for it unless a person, or the settings, say so."""
        if self._may_resubmit(attempt) and not asked_in_vain:
            return Cause.RESUBMIT
        self.leave_held(attempt)
        return None

    def leave_held(self, attempt: Attempt) -> None:
        """Count an attempt that stays held."""
        if attempt.state is AttemptState.UNKNOWN:
            self._tally.unknown += 1
        else:
            self._tally.overdue += 1

    async def _give_up(self, attempt: Attempt) -> None:
        await self._move(attempt, AttemptState.ABANDONED, then=ItemState.PENDING)

    def _may_resubmit(self, attempt: Attempt) -> bool:
        if self._policy.resubmit_unknown and attempt.run_id != self._policy.run_id:
            # Once an item under one root run: a re-execution copies its parent's config, and must not pay again.
            return not (attempt.cause is Cause.RESUBMIT and attempt.root_run_id == self._policy.root_run_id)
        return self._policy.on_unknown == "resubmit" and attempt.attempt < self._policy.max_attempts

    # --- poll --------------------------------------------------------------------------------------------------------

    async def _poll_to_the_end(self, attempt: Attempt) -> Polled | PollError:
        """Poll until the task has ended or is overdue, once when it was found so; returns the last answer."""
        began = time.monotonic() - self._age_s(attempt)
        latencies = self._schedule.of(attempt.resolution)
        # What is overdue teaches nothing: it is asked about once.
        scout = attempt.state is AttemptState.SUBMITTED and latencies.send_scout()
        unknown_since: float | None = None
        wait_s = max(0.0, latencies.first_poll_s(scout=scout) - self._age_s(attempt))
        no_sooner_s = 0.0
        while True:
            if not scout and not latencies.learnt:
                wait_s = await self._behind_scouts(latencies, attempt, began, wait_s, no_sooner_s)
            await self._pause(wait_s)
            answer = await self._provider.poll(attempt.task_id or "")
            attempt.polls += 1
            self._tally.polls += 1
            now = time.monotonic()
            age_s = now - began
            if isinstance(answer, PollError):
                if answer.kind in STOPS_RUN:
                    raise RunStoppedError(answer.kind, answer.message)
                no_sooner_s = answer.retry_after_s or 0.0
                wait_s = max(no_sooner_s, latencies.next_poll_s(age_s, scout=scout))
                unknown_since = (unknown_since or now) if answer.kind is ErrorKind.NOT_FOUND else None
                gone = unknown_since is not None and now - unknown_since >= self._patience.not_found_s
                reason = answer.message
            elif answer.task.state != "running":
                if attempt.state is AttemptState.SUBMITTED:
                    # Taken at its face, the first question's time would be learnt for ever: a provider that became
                    # faster would never be noticed.
                    self._schedule.observe(attempt.resolution, age_s * (_SEEN_AT_ONCE if attempt.polls == 1 else 1.0))
                return answer
            else:
                unknown_since, gone, no_sooner_s = None, False, 0.0
                wait_s = latencies.next_poll_s(age_s, scout=scout)
                reason = f"the task has not ended after {self._policy.task_deadline_s:.0f} s"
            if attempt.state is AttemptState.OVERDUE:
                # Already given up once: each later run asks once, and a late completion settles it.
                await self._ledger.post(lambda postings: postings.note(attempt, polls=attempt.polls))
                return answer
            if gone or age_s > self._policy.task_deadline_s:
                await self._overdue(attempt, _NOT_KNOWN if gone else reason)
                return answer

    async def _behind_scouts(
        self, latencies: Latencies, attempt: Attempt, began: float, wait_s: float, no_sooner_s: float
    ) -> float:
        """Wait for what other tasks tell of the latency, and no longer than `wait_s`; seconds that are left to wait.

        A thousand tasks that were begun before anything was learnt were once asked about eight times each.
        """
        asleep = time.monotonic()
        # Not beyond its deadline, which is noticed by a question.
        ends = asleep + max(no_sooner_s, min(wait_s, began + self._policy.task_deadline_s - asleep))
        while not latencies.learnt and (left_s := ends - time.monotonic()) > 0:
            await self._pause(min(left_s, _LOOK_AGAIN_S))
        now = time.monotonic()
        if not latencies.learnt:
            return 0.0
        # One that has been asked about a moment ago is not asked again with all the others.
        asked_again = asleep + latencies.gap_s if attempt.polls else now
        due = max(began + latencies.first_poll_s(), asleep + no_sooner_s, asked_again)
        return max(0.0, min(ends, due) - now)

    async def _overdue(self, attempt: Attempt, reason: str) -> None:
        await self._leave(
            attempt,
            AttemptState.OVERDUE,
            polls=attempt.polls,
            error_kind=ErrorKind.DEADLINE,
            error_message=reason,
        )

    async def _failed(self, attempt: Attempt, task: Task) -> Cause | None:
        await self._record_failure(attempt, task)
        return self._again_after(attempt)

    async def _record_failure(self, attempt: Attempt, task: Task, **facts: Any) -> None:
        error = task.error
        code, message = (error.code, error.message) if error else (None, f"the task ended as {task.status_word}")
        kind, billed = kind_of_task_error(code, message, self._spec)
        if billed or (task.usage is not None and task.usage.cost_micros):
            facts |= self._cost_facts(attempt, task, images=0)
        again = self._deserves_another(attempt, kind, paid=bool(facts.get("cost_micros")))
        await self._leave(
            attempt,
            AttemptState.FAILED,
            then=ItemState.PENDING if again else ItemState.FAILED,
            **_usage_facts(task.usage),
            **facts,
            polls=attempt.polls,
            completed_at=self._now_ms(),
            metadata=_json(task.metadata),
            error_kind=kind,
            error_code=code,
            error_message=message,
        )
        self._tally.cost_micros += attempt.cost_micros
        if not again:
            self._tally.failed_with(kind)

    def _again_after(self, attempt: Attempt) -> Cause | None:
        if attempt.state is not AttemptState.FAILED:
            return None
        again = self._deserves_another(attempt, attempt.error_kind, paid=attempt.cost_micros > 0)
        return Cause.RETRY if again else None

    def _deserves_another(self, attempt: Attempt, kind: str | None, *, paid: bool) -> bool:
        if paid and not self._may_pay_again(attempt):
            # To try again would be to pay again: that is a person's to say, as with an image that can't be used.
            return False
        return kind == ErrorKind.PROVIDER_FAILURE and attempt.failures + 1 < self._policy.max_attempts

    def _may_pay_again(self, attempt: Attempt) -> bool:
        return self._policy.on_unusable == "regenerate" and attempt.attempt < self._policy.max_attempts

    # --- settle and deliver ------------------------------------------------------------------------------------------

    async def _completed(self, attempt: Attempt, task: Task, **facts: Any) -> None:
        """Enter that the task is done, and what it cost, before anything else is done about it."""
        urls = task.image_urls
        await self._leave(
            attempt,
            AttemptState.COMPLETED,
            **_usage_facts(task.usage),
            **self._cost_facts(attempt, task, images=len(urls)),
            **facts,
            polls=attempt.polls,
            completed_at=self._now_ms(),
            metadata=_json(task.metadata),
            text=task.text,
            urls=orjson.dumps(urls).decode(),
            error_kind=None,
            error_message=None,
        )
        self._tally.cost_micros += attempt.cost_micros
        if task.usage is not None:
            self._tally.prompt_tokens += task.usage.prompt_tokens or 0
            self._tally.completion_tokens += task.usage.completion_tokens or 0

    async def _deliver(self, attempt: Attempt) -> Cause | None:
        if attempt.urls is not None:
            urls = tuple(orjson.loads(attempt.urls))
        else:
            # Adopted from the tables, which do not hold them.
            urls = await self._delivery.renewed(lambda: self._fresh_urls(attempt))
        if isinstance(urls, str):
            # A task that was forgotten meanwhile never tells: such an attempt was once work left for ever.
            message = f"its images' URLs were not in the tables, and could not be asked for: {urls}"
            return None if await self._put_off(attempt, message) else await self._unusable(attempt, message)
        if not urls:
            text = f'; it says: "{attempt.text[:200]}"' if attempt.text else ""
            return await self._unusable(attempt, f"the task completed without an image{text}")
        request = Request.from_json(attempt.body)
        delivered = await self._delivery.deliver(attempt, request, urls, lambda: self._fresh_urls(attempt))
        may_come = any(not fault.lasting for fault in delivered.faults)
        if may_come and await self._put_off(attempt, delivered.message):
            return None
        if delivered.images:
            await self._move(
                attempt,
                AttemptState.STORED,
                images=_json(delivered.images),
                stored_at=self._now_ms(),
                polls=attempt.polls,
                error_message=delivered.message or None,
            )
            self._tally.succeeded += 1
            self._tally.images += len(delivered.images)
            return None
        return await self._unusable(attempt, delivered.message)

    async def _put_off(self, attempt: Attempt, message: str) -> bool:
        """Leave what is paid for to the next run, which asks again; False when it has been in vain for too long."""
        now, vain = self._now_ms(), attempt.delivery_vain_ms
        if attempt.delivery_failed_at is not None:
            # While nobody ran, nobody tried: a minute out of order once ended an image after a weekend.
            longest = round(self._patience.delivery_pause_s * 1000)
            vain += min(max(now - attempt.delivery_failed_at, 0), longest)
        if vain >= self._patience.give_up_delivery_s * 1000:
            return False
        facts = {"delivery_failed_at": now, "delivery_vain_ms": vain, "error_message": message}
        await self._ledger.post(lambda postings: postings.note(attempt, only_in=AttemptState.COMPLETED, **facts))
        return True

    async def _unusable(self, attempt: Attempt, message: str) -> Cause | None:
        again = self._may_pay_again(attempt)
        await self._move(
            attempt,
            AttemptState.UNUSABLE,
            then=ItemState.PENDING if again else ItemState.FAILED,
            polls=attempt.polls,
            error_kind=ErrorKind.BAD_OUTPUT,
            error_message=message,
        )
        if again:
            return Cause.REGENERATE
        self._tally.failed_with(ErrorKind.BAD_OUTPUT)
        return None

    async def _fresh_urls(self, attempt: Attempt) -> tuple[str, ...] | str:
        """The task's result URLs as they are now; why in words, when it could not be asked."""
        self._journal.fresh_urls(attempt)
        answer = await self._provider.poll(attempt.task_id or "")
        attempt.polls += 1
        self._tally.polls += 1
        if isinstance(answer, PollError):
            if answer.kind in STOPS_RUN:
                raise RunStoppedError(answer.kind, answer.message)
            return _NOT_KNOWN if answer.kind is ErrorKind.NOT_FOUND else answer.message
        if answer.task.state == "running":
            # It has ended: one of the provider's machines that says otherwise has not heard of it, nor of its images.
            return f"the task is said to be {answer.task.status_word}"
        return answer.task.image_urls

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _cost_facts(self, attempt: Attempt, task: Task, *, images: int) -> dict[str, Any]:
        day = date.fromisoformat(attempt.day)
        cost = cost_of(self._spec, task.usage, resolution=attempt.resolution, images=images, day=day)
        return {"cost_micros": cost.micros, "cost_source": cost.source, "price_version": cost.price_version}

    def _age_s(self, attempt: Attempt) -> float:
        return max(0.0, (self._now_ms() - (attempt.submitted_at or self._now_ms())) / 1000)

    def _backoff_s(self, number: int) -> float:
        return backoff_s(number, first_s=self._patience.submit_backoff_s)

    async def _leave(self, attempt: Attempt, to: AttemptState, **facts: Any) -> None:
        """Move an attempt whose task no longer occupies the provider."""
        was_in_flight = attempt.state in {AttemptState.SUBMITTING, AttemptState.SUBMITTED}
        await self._move(attempt, to, **facts)
        if was_in_flight:
            self._tally.in_flight = max(0, self._tally.in_flight - 1)
            self._admissions.room_made()

    async def _move(self, attempt: Attempt, to: AttemptState, **facts: Any) -> None:
        task_id = facts.get("task_id")

        def posting(postings: Postings) -> bool:
            moved = postings.move(attempt, to, **facts)
            if not moved and task_id is not None:
                # Nobody else was told, and an invoice knows the attempt by nothing else.
                postings.note(attempt, task_id=task_id)
            return moved

        if not await self._ledger.post(posting):
            self._journal.too_late(attempt, to, task_id)
            raise SettledElsewhereError(attempt.attempt_id)
        self._journal.moved(attempt, to, facts)

    async def _pause(self, seconds: float) -> None:
        """Wait; raises `StoppedError` as soon as the run is being stopped."""
        if self._stopping.is_set():
            raise StoppedError
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise StoppedError


def _usage_facts(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _json(value: Any) -> str | None:
    return orjson.dumps(value).decode() if value else None


def _http(status: int | None) -> str | None:
    return None if status is None else f"http_{status}"
