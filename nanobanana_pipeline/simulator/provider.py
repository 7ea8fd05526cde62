"""The provider itself: it takes submits, keeps tasks, answers polls, and writes its book.

Requests and answers are plain values here; sockets and ASGI are in `app`. Everything happens on the event loop's thread
and without waiting, so each method is one indivisible step.
"""

import contextlib
import hmac
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from typing import Any

from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.simulator.billing import Book, Row, as_money, as_seconds, as_time, key_fingerprint
from nanobanana_pipeline.simulator.clock import Clock
from nanobanana_pipeline.simulator.draws import log_normal
from nanobanana_pipeline.simulator.faults import FaultScript, Strike
from nanobanana_pipeline.simulator.links import Link, Links
from nanobanana_pipeline.simulator.options import SimulatorOptions
from nanobanana_pipeline.simulator.outcomes import Outcome, decide
from nanobanana_pipeline.simulator.pictures import EXTENSIONS, Format, PictureOrder, choose_format
from nanobanana_pipeline.simulator.polls import SPOILINGS as POLL_SPOILINGS
from nanobanana_pipeline.simulator.replies import (
    Reply,
    error_detail,
    error_object,
    error_text,
    json_reply,
    rate_limited,
)
from nanobanana_pipeline.simulator.submits import AT_ONCE, REFUSALS, SPOILINGS, Asked
from nanobanana_pipeline.simulator.tasks import Task, new_task_id, tasks_in
from nanobanana_pipeline.simulator.validation import GenerationRequest, RefusedRequestError, read_request

_DEFAULT_RATIO = "1:1"


@dataclass(slots=True)
class Stats:
    """What the simulator counts: `events` and `cost_usd` over the whole book, the rest since it started."""

    requests: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    cost_usd: Decimal = Decimal(0)
    in_flight: int = 0
    max_in_flight: int = 0
    open_requests: int = 0
    max_open_requests: int = 0
    image_bytes: int = 0

    @contextlib.contextmanager
    def open_request(self, kind: str) -> Generator[None, None, None]:
        """Count a request while it lasts."""
        self.requests[kind] += 1
        self.open_requests += 1
        self.max_open_requests = max(self.max_open_requests, self.open_requests)
        try:
            yield
        finally:
            self.open_requests -= 1

    def as_json(self) -> dict[str, Any]:
        """As the control endpoint shows it."""
        return {
            "requests": dict(self.requests),
            "answers": {str(status): times for status, times in self.answers.items()},
            "events": dict(self.events),
            "submits": self.requests["submit"],
            "polls": self.requests["poll"],
            "images": self.requests["image"],
            "accepted": self.events["accepted"],
            "billed": self.events["billed"],
            "failed": self.events["failed"],
            "refused": self.events["refused"],
            "token_leaks": self.events["token_leak"],
            "cost_usd": f"{self.cost_usd:.6f}",
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "open_requests": self.open_requests,
            "max_open_requests": self.max_open_requests,
            "image_bytes": self.image_bytes,
        }


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request's headers say of who sends it."""

    authorization: str | None
    idempotency_key: str | None = None
    request_id: str | None = None


class Provider:
    """A provider with its tasks, its book and its ways to go wrong."""

    def __init__(self, options: SimulatorOptions, spec: ModelSpec, book: Book, images_origin: str) -> None:
        """Take up where the book ends. Call it on a running event loop: tasks fall due there."""
        self.options = options
        self.spec = spec
        self.book = book
        self.stats = Stats()
        self.faults = FaultScript()
        self.images_origin = images_origin
        self.links = Links(images_origin, secret=options.api_key, lifetime_s=options.url_lifetime)
        self.tasks: dict[str, Task] = {}
        self._authorization = f"Bearer {options.api_key}".encode()
        self._key = key_fingerprint(options.api_key)
        self._times_asked: Counter[str] = Counter()
        self._recent_submits: deque[float] = deque()
        self._request_numbers = count(1)
        rows = book.rows()
        self.clock = Clock(not_before=_last_moment(rows))
        self._take_up(rows)

    # --- submit ---

    def submit(self, caller: Caller, body: bytes) -> Reply:
        """Answer a submit. A task, or a refusal, is in the book before this returns."""
        self.clock.settle()
        request_id = caller.request_id or f"req-{next(self._request_numbers)}"
        if not self.is_authorised(caller.authorization):
            return self._refuse(error_text(401, "invalid api key"), None, caller)
        try:
            request = read_request(body, self.spec)
        except RefusedRequestError as refusal:
            return self._refuse(error_object(refusal.status, refusal.message, request_id), None, caller)
        strike = self.faults.strike("submit", request.prompt)
        if strike is not None and (strike.fault in REFUSALS or strike.params.get("accepted") is False):
            return self._refuse(self._refusal(strike, request_id), request, caller, strike)
        limited = self._limited()
        if limited is not None:
            return self._refuse(limited, request, caller)
        return self._accept(request, caller, strike)

    def is_authorised(self, authorization: str | None) -> bool:
        """Whether the header carries the key."""
        return authorization is not None and hmac.compare_digest(
            authorization.encode("utf-8", "surrogateescape"), self._authorization
        )

    def _refusal(self, strike: Strike, request_id: str) -> Reply:
        if strike.fault in REFUSALS:
            asked = Asked(request_id, self.images_origin + self.spec.api.submit_path)
            return REFUSALS[strike.fault](strike.params, asked)
        return SPOILINGS[strike.fault](Reply(), strike.params)

    def _limited(self) -> Reply | None:
        if self.options.max_in_flight is not None and self.stats.in_flight >= self.options.max_in_flight:
            return rate_limited(None)
        if self.options.requests_per_minute is None:
            return None
        now, recent = self.clock.now(), self._recent_submits
        while recent and recent[0] <= now - 60:
            recent.popleft()
        if len(recent) >= self.options.requests_per_minute:
            return rate_limited(max(1, int(recent[0] + 60 - now) + 1))
        recent.append(now)
        return None

    def _refuse(
        self, reply: Reply, request: GenerationRequest | None, caller: Caller, strike: Strike | None = None
    ) -> Reply:
        self._write(
            {
                "event": "refused",
                "time": as_time(self.clock.now()),
                "status": reply.status,
                "prompt": None if request is None else request.prompt,
                "fingerprint": None if request is None else request.fingerprint,
                "fault": None if strike is None else strike.as_row(),
                "idempotency_key": caller.idempotency_key,
                "cost_usd": "0.000000",
            }
        )
        return reply

    def _accept(self, request: GenerationRequest, caller: Caller, strike: Strike | None) -> Reply:
        struck = () if strike is None else (strike,)
        strikes = struck + self.faults.strikes("task", request.prompt)
        fingerprint = request.fingerprint
        latency = self._latency(request, strikes)
        # The book holds milliseconds, and a restarted simulator must find the very same times in it; not rounded up, as
        # what ends at once would then be due in the future.
        created = int(self.clock.now() * 1000) / 1000
        task = Task(
            id=new_task_id(),
            request=request,
            fingerprint=fingerprint,
            chance=f"{self.options.seed}/{fingerprint}/{self._times_asked[fingerprint]}",
            created=created,
            due=float("inf") if latency is None else created + latency,
            strikes=strikes,
            idempotency_key=caller.idempotency_key,
        )
        answer = "sent" if strike is None else strike.fault
        self._write(self._accepted_row(task, latency, answer))
        self._times_asked[fingerprint] += 1
        self._admit(task)
        if strike is not None and strike.fault in AT_ONCE:
            self.clock.settle()
            return self._view(task)
        reply = json_reply(self._head(task, "in_progress"))
        if strike is not None and strike.fault in SPOILINGS:
            reply = SPOILINGS[strike.fault](reply, strike.params)
        return reply

    def _latency(self, request: GenerationRequest, strikes: tuple[Strike, ...]) -> float | None:
        """Seconds that the task will take; None: it never ends."""
        faults = {strike.fault: strike.params for strike in strikes}
        if not AT_ONCE.isdisjoint(faults):
            return 0.0
        if "stuck" in faults:
            return None
        if "slow_task" in faults:
            return float(faults["slow_task"]["seconds"])
        return round(
            log_normal(self.options.latency, self.options.sigma, self.options.seed, "latency", request.prompt), 3
        )

    def _accepted_row(self, task: Task, latency: float | None, answer: str) -> Row:
        request = task.request
        return {
            "event": "accepted",
            "time": as_time(task.created),
            "task_id": task.id,
            "model": request.model,
            "prompt": request.prompt,
            "resolution": request.resolution,
            "request": {
                "aspect_ratio": request.aspect_ratio,
                "image_urls": request.image_urls,
                "response_modalities": request.response_modalities,
            },
            "fingerprint": task.fingerprint,
            "chance": task.chance,
            "latency_s": latency,
            "answer": answer,
            "faults": [strike.as_row() for strike in task.strikes],
            "idempotency_key": task.idempotency_key,
            "key": self._key,
        }

    # --- the life of a task ---

    def _admit(self, task: Task) -> None:
        self.tasks[task.id] = task
        self.stats.in_flight += 1
        self.stats.max_in_flight = max(self.stats.max_in_flight, self.stats.in_flight)
        self.clock.at(task.due, lambda: self._end(task))

    def _end(self, task: Task) -> None:
        """Decide how the task ended and book it: the provider bills when the work is done, asked for or not."""
        outcome = self._outcome(task)
        self._write(
            {
                "event": "billed" if outcome.billed else "failed",
                "time": as_time(task.due),
                "task_id": task.id,
                "model": task.request.model,
                "prompt": task.request.prompt,
                "resolution": task.request.resolution,
                "images": outcome.images,
                "status": "failed" if outcome.error is not None else "completed",
                "error": outcome.error,
                "usage": outcome.use.as_usage(),
                "cost_usd": f"{outcome.cost:.6f}",
                "price_version": self.spec.price_at(task.day).version,
                "fingerprint": task.fingerprint,
                "idempotency_key": task.idempotency_key,
                "key": self._key,
            }
        )
        task.outcome = outcome
        self.stats.in_flight -= 1

    def _outcome(self, task: Task) -> Outcome:
        return decide(task.request, task.strikes, self.spec, chance=task.chance, day=task.day)

    # --- poll ---

    def poll(self, caller: Caller, task_id: str) -> Reply:
        """Answer a poll."""
        self.clock.settle()
        if not self.is_authorised(caller.authorization):
            return error_text(401, "invalid api key")
        task = self.tasks.get(task_id)
        if task is None:
            return error_detail(404, "task not found")
        task.polls += 1
        strike = self.faults.strike("poll", task.request.prompt)
        reply = self._view(task)
        return reply if strike is None else POLL_SPOILINGS[strike.fault](reply, strike.params, task)

    def _view(self, task: Task) -> Reply:
        outcome = task.outcome
        now = self.clock.now()
        if outcome is None:
            return json_reply({**self._head(task, "in_progress"), "progress": task.progress(now)})
        answer = self._head(task, outcome.word)
        if outcome.error is not None:
            return json_reply({**answer, "error": outcome.error})
        answer["progress"] = 1
        output = self._output(task, outcome, now)
        if output is not None:
            answer["output"] = output
        if outcome.usage is not None:
            answer["usage"] = outcome.usage
        answer["metadata"] = {
            "in_queue_at": task.created,
            "upload_at": task.due,
            "completed_at": task.due,
        }
        return json_reply(answer)

    def _head(self, task: Task, status: str) -> dict[str, Any]:
        return {
            "id": task.id,
            "created_at": round(task.created * 1000),
            "status": status,
            "model": task.request.model,
        }

    def _output(self, task: Task, outcome: Outcome, now: float) -> list[Any] | None:
        match outcome.layout:
            case "absent":
                return None
            case "empty":
                return []
            case "empty_content":
                return [{"content": []}]
            case _:
                entries = [*outcome.texts, *self._image_entries(task, outcome, now)]
                return entries if outcome.layout == "flat" else [{"content": entries}]

    def _image_entries(self, task: Task, outcome: Outcome, now: float) -> list[dict[str, Any]]:
        if not outcome.images:
            return []
        task.issues += 1
        extension = EXTENSIONS[self._format(task)]
        return [
            {
                "type": "image",
                "url": self.links.make(Link(task.id, number, task.issues), extension, now),
                "jobId": f"{task.id}-{number}",
            }
            for number in range(outcome.images)
        ]

    # --- pictures ---

    def picture_order(self, task: Task, number: int) -> PictureOrder:
        """What to draw for a task's picture."""
        width, height = self._size(task.request)
        if self.options.cached_picture:
            chance, caption = "cached", f"{width} x {height}"
        else:
            chance, caption = f"{task.chance}/{number}", task.request.prompt
        return PictureOrder(chance, caption, width, height, self._format(task), self.options.picture_bytes)

    def _format(self, task: Task) -> Format:
        if self.options.picture_bytes is not None or self.options.cached_picture:
            return "JPEG"
        return choose_format(task.chance, *self._size(task.request))

    def _size(self, request: GenerationRequest) -> tuple[int, int]:
        size = self.spec.expected_size(request.aspect_ratio or _DEFAULT_RATIO, request.resolution)
        if size is None:  # the spec holds a size for each ratio it allows, and requests are checked against it
            raise AssertionError(f"no size for {request}")
        return size

    # --- the book ---

    def note_token_leak(self, origin: str, path: str) -> None:
        """Book that a token came where none belongs."""
        self._write({"event": "token_leak", "time": as_time(self.clock.now()), "origin": origin, "path": path})

    def _write(self, row: Row) -> None:
        self.book.append(row)
        self._count(row)

    def _count(self, row: Row) -> None:
        self.stats.events[row["event"]] += 1
        if row["event"] == "billed":
            self.stats.cost_usd += as_money(row["cost_usd"])

    def _take_up(self, rows: list[Row]) -> None:
        for row in rows:
            self._count(row)
        for task, ended in tasks_in(rows).values():
            self._times_asked[task.fingerprint] += 1
            if ended:
                self.tasks[task.id] = task
                task.outcome = self._outcome(task)
            else:
                self._admit(task)
        self.clock.settle()


def _last_moment(rows: list[Row]) -> float:
    return max((as_seconds(row["time"]) for row in rows), default=0.0)
