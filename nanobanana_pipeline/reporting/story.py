"""What a story is made of: sentences, some with their moment; and how counts, durations and errors are told in them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
_EXACT_S: Final = 10
_QUOTED: Final = 160


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, at a moment if that is known (milliseconds); `attempt_id` says to which attempt."""

    text: str
    at: int | None = None
    attempt_id: str | None = None


@dataclass(slots=True)
class Story:
    """What happened to an item, in a run or on a day: what is so now, and how it came to be."""

    kind: Literal["item", "run", "day"]
    id: str
    title: str
    facts: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """The same for programs: counts, and money as strings of dollars with six places."""

    def say(self, text: str) -> None:
        """Add a sentence on how things are."""
        self.facts.append(text)

    def tell(self, text: str, *, at: int | None = None, attempt_id: str | None = None) -> None:
        """Add something that happened."""
        self.events.append(Event(text, at, attempt_id))

    @property
    def lines(self) -> list[str]:
        """As people read it. The date stands where it changes; all times are UTC."""
        told: list[str] = [self.title, *(f"  {fact}" for fact in self.facts)]
        day = ""
        for event in self.events:
            if event.at is None:
                told.append(f"             {event.text}")
                continue
            moment = datetime.fromtimestamp(event.at / 1000, UTC)
            if f"{moment:%Y-%m-%d}" != day:
                day = f"{moment:%Y-%m-%d}"
                told.append(f"{day} (UTC)")
            told.append(f"  {moment:%H:%M:%S}   {event.text}")
        return told

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "id": self.id,
            "title": self.title,
            "facts": self.facts,
            "events": [
                {"at": None if event.at is None else iso(event.at), "attempt_id": event.attempt_id, "text": event.text}
                for event in self.events
            ],
            **self.figures,
        }


def iso(at: int) -> str:
    """A moment as programs read it."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")


def moment(at: int) -> str:
    """A moment as people read it."""
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(ms: int) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min` or `3 days 2 h`."""
    seconds = max(0, ms) / 1000
    if seconds < _EXACT_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{count(whole // _DAY_S, 'day')} {whole % _DAY_S // _HOUR_S} h"


def count(number: int, thing: str) -> str:
    """`1 attempt`, `1,200 attempts`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def quoted(text: str) -> str:
    """Somebody else's words, in one line and not too many."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= _QUOTED else line[: _QUOTED - 1] + '…'}”"


def error(kind: str | None, code: str | None, message: str | None) -> str:
    """An error in a few words: its kind, the provider's code, its message."""
    words = [kind or "no kind noted", *([code] if code else [])]
    return " ".join(words) + (f", {quoted(message)}" if message else "")
