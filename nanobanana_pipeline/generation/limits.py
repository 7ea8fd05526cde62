"""How much the provider can be sent: open tasks, submits a minute, and what its refusals teach.

Pure arithmetic on a small state. The state lives in the ledger and changes in the admission's own transaction, so every
process that works for one account obeys the same limits, and an item that waits holds neither a connection nor a slot.

The limit on open tasks begins low and grows with every accepted submit, until the provider pushes back for the first
time; from then on by one for each limit's worth of them. A push-back takes a tenth off what was in the air, at most
once a second: refusals come in bursts, and one burst is one message. Halving it, usual for networks, would leave a
quarter of what the provider allows unused (`make bench`).
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Final

import orjson

from nanobanana_pipeline.generation.errors import MAX_RETRY_AFTER_S
from nanobanana_pipeline.ledger.entries import InFlight

_MIN_LIMIT: Final = 1.0
_DECREASE: Final = 0.9
_FIRST_LIMIT: Final = 64.0
_DECREASE_EVERY_MS: Final = 1000
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_LONGEST_RETRY_AFTER_MS: Final = int(MAX_RETRY_AFTER_S * 1000)
_ASK_AGAIN_S: Final = 0.25
_RATE_USED: Final = 0.985
"""Share of the requests a minute: at the very limit, a request that travels faster than the last would be refused."""
_AFTER_PUSH_BACK: Final = 4
"""Submits that go first when a pause is over; each that is taken lets two more go."""
_BURST_S: Final = 1.0
"""Seconds' worth of submits that may go at once when requests a minute are limited."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """What is known of an account's limits. Times are the database's, in milliseconds."""

    limit: float
    tokens: float
    refilled_at: int
    paused_until: int = 0
    decreased_at: int = 0
    strikes: int = 0
    accepted: int = 0
    """Submits taken since the latest push-back."""

    @classmethod
    def load(cls, text: str | None, *, limit: float, now: int) -> "Throttle":
        """The state kept in the ledger, or a fresh one."""
        if not text:
            return cls(limit=limit, tokens=1.0, refilled_at=now)
        kept = orjson.loads(text)
        # Of a clock that has been put back since: nothing would be sent until it is there again.
        kept["paused_until"] = min(kept["paused_until"], now + _LONGEST_RETRY_AFTER_MS)
        kept["decreased_at"] = min(kept["decreased_at"], now)
        return cls(**kept)

    def dump(self) -> str:
        """As kept in the ledger."""
        return orjson.dumps(
            {
                "limit": round(self.limit, 3),
                "tokens": round(self.tokens, 3),
                "refilled_at": self.refilled_at,
                "paused_until": self.paused_until,
                "decreased_at": self.decreased_at,
                "strikes": self.strikes,
                "accepted": self.accepted,
            }
        ).decode()


class ProviderGate:
    """Decides how many submits may go now; see `ledger.postings.Gate`."""

    def __init__(self, account: str, *, max_in_flight: int, requests_per_minute: int | None) -> None:
        self.account = account
        self._max = float(max_in_flight)
        self._per_ms = requests_per_minute / 60_000 * _RATE_USED if requests_per_minute else None
        self._burst = max(1.0, (requests_per_minute or 0) / 60 * _BURST_S)
        self._accepted = 0
        self._in_flight = 0

    def accepted(self) -> None:
        """Count a submit that the provider took; it raises the limit with the next admission."""
        self._accepted += 1

    def grant(self, state: str | None, now_ms: int, in_flight: InFlight, wanted: int) -> tuple[int, float]:
        """How many of `wanted` may go now, and after how many seconds to ask for the rest.

        While others wait, nobody takes more than an equal share: the one whose tasks end fills their places at once,
        before the others have asked again, so a large run would keep a small one out until its own end.
        """
        throttle = self._refilled(state, now_ms)
        self._in_flight = in_flight.total
        if now_ms < throttle.paused_until:
            # Positive jitter only: earlier than told is a refusal, and all at the same moment is a stampede.
            return 0, (throttle.paused_until - now_ms) / 1000 * random.uniform(1.0, 1.25)  # noqa: S311 - not a secret
        limit, sharers = math.floor(min(throttle.limit, self._max)), in_flight.others_waiting + 1
        room = max(0, limit - in_flight.total)
        granted = min(wanted, room, max(0, math.ceil(limit / sharers) - in_flight.mine))
        if throttle.decreased_at:
            granted = min(granted, _AFTER_PUSH_BACK + 2 * (throttle.accepted + self._accepted))
        wait_s = _ASK_AGAIN_S
        if self._per_ms is not None:
            granted = min(granted, math.ceil(math.floor(throttle.tokens) / sharers))
            if granted < room:
                wait_s = max(0.0, 1.0 - (throttle.tokens - granted)) / self._per_ms / 1000
        return granted, wait_s

    def take(self, state: str | None, now_ms: int, taken: int) -> str | None:
        """The state after `taken` submits were admitted."""
        self._in_flight += taken
        if self._per_ms is None and state is None and self._max <= _FIRST_LIMIT:
            # Nothing is limited and nothing was learnt: no row to write.
            self._accepted = 0
            return None
        throttle = self._refilled(state, now_ms)
        accepted, self._accepted = self._accepted, 0
        if accepted:
            pushed_back = throttle.decreased_at > 0
            grown = throttle.limit + (accepted / max(throttle.limit, _MIN_LIMIT) if pushed_back else accepted)
            limit = min(self._max, grown)
            throttle = replace(throttle, limit=limit, strikes=0, accepted=throttle.accepted + accepted)
        return replace(throttle, tokens=throttle.tokens - taken if self._per_ms else throttle.tokens).dump()

    def pushed_back(self, state: str | None, now_ms: int, retry_after_s: float | None) -> str:
        """The state after the provider refused a submit for load (429, 503)."""
        throttle = self._refilled(state, now_ms)
        if now_ms - throttle.decreased_at >= _DECREASE_EVERY_MS:
            throttle = replace(
                throttle,
                limit=max(_MIN_LIMIT, min(throttle.limit, self._max, self._in_flight) * _DECREASE),
                decreased_at=now_ms,
                strikes=throttle.strikes + 1,
            )
        pause_s = retry_after_s
        if pause_s is None:
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** max(0, throttle.strikes - 1))
        paused_until = max(throttle.paused_until, now_ms + int(pause_s * 1000))
        return replace(throttle, accepted=0, paused_until=paused_until).dump()

    def _refilled(self, state: str | None, now_ms: int) -> Throttle:
        throttle = Throttle.load(state, limit=min(self._max, _FIRST_LIMIT), now=now_ms)
        if self._per_ms is None:
            return throttle
        gained = max(0, now_ms - throttle.refilled_at) * self._per_ms
        return replace(throttle, tokens=min(self._burst, throttle.tokens + gained), refilled_at=now_ms)


def backoff_s(attempt: int, *, first_s: float = 0.5, longest_s: float = 30.0) -> float:
    """Seconds to wait before try number `attempt` + 1: doubling, with full positive jitter."""
    return min(longest_s, first_s * 2 ** (attempt - 1)) * random.uniform(1.0, 2.0)  # noqa: S311 - not a secret
