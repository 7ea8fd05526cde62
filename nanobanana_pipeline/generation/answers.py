"""What the provider's answers mean, as plain values: the words that the client and the engine speak to each other.

Only data belongs here. Reading bodies is `wire`'s work, deciding what an error is belongs to `errors`, and sockets to
`client`. Every class says what is known about *money*: that is why a lost answer is a class of its own and no
exception.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.pricing import Usage

TaskState = Literal["running", "completed", "failed"]
DownloadFault = Literal["expired", "retryable", "bad_output", "refused_host"]


@dataclass(frozen=True, slots=True)
class ProviderError:
    """An error in the provider's own words: `code` in nine digits if it is a number, `message` one short line."""

    code: str | None
    message: str


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """One entry of a task's output.

    `type` is the provider's word in lower case (`image`, `text`). An image has its `url`; a text its `text`; an entry
    of another shape has neither. `extra` holds the remaining fields (`jobId`).
    """

    type: str
    url: str | None = None
    text: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as one answer showed it.

    `state` is what the status means; `status_word` is the provider's word for it, in lower case. A word that nobody
    knows is `running`: only a known word ends a task. `created_at` is in milliseconds since the epoch, `progress` from
    0 to 1. `raw_usage` and `metadata` are kept as sent, as far as they can be kept as JSON (bounded in size).
    """

    id: str | None
    state: TaskState
    status_word: str
    progress: float | None = None
    created_at: int | None = None
    entries: tuple[OutputEntry, ...] = ()
    usage: Usage | None = None
    error: ProviderError | None = None
    metadata: dict[str, Any] | None = None
    raw_usage: dict[str, Any] | None = None

    @property
    def image_urls(self) -> tuple[str, ...]:
        """The URLs of the task's images, in the provider's order."""
        return tuple(entry.url for entry in self.entries if entry.type == "image" and entry.url)

    @property
    def text(self) -> str | None:
        """The task's text entries, a line each; None when it has none."""
        texts = [entry.text for entry in self.entries if entry.text]
        return "\n".join(texts) if texts else None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The task exists and will be billed if it completes; `task.id` is set. It may have ended already (fast path)."""

    task: Task


@dataclass(frozen=True, slots=True)
class Refused:
    """No task was created and nothing is billed: the provider said no, or no connection to it ever opened."""

    kind: ErrorKind
    code: str | None
    message: str
    http_status: int | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request may have arrived, and no readable answer came: a task may exist and be billed. Never send again."""

    reason: str
    http_status: int | None = None


@dataclass(frozen=True, slots=True)
class Polled:
    """The task as it is now."""

    task: Task


@dataclass(frozen=True, slots=True)
class PollError:
    """The question failed, which says nothing about the task: it may still be running, or done."""

    kind: ErrorKind
    message: str
    http_status: int | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The whole body of a result, exactly as sent; `content_type` as the server names it, without parameters."""

    data: bytes
    content_type: str | None


@dataclass(frozen=True, slots=True)
class DownloadError:
    """A result could not be fetched.

    `expired`: this URL no longer serves it, so poll the task for a fresh one. `retryable`: the same URL may do later.
    `bad_output`: what it serves can't be an image that may be kept (too large, not a URL). `refused_host`: we may not
    go there.
    """

    kind: DownloadFault
    message: str
    http_status: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Who answers at the API's origin, and whether it says of itself that it is the simulator."""

    origin: str
    simulated: bool
