"""What items have cost and how long they took, from the ledger: the experience that a forecast goes by.

Only finished items count, each with all the attempts that its request took, so that failures and retries are in the
figures as they were. Arithmetic on them is in `forecast`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.entries import Cause
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.states import OPEN_STATES, ItemState
from nanobanana_pipeline.model_specs.pricing import MICROS_PER_USD
from nanobanana_pipeline.model_specs.spec import ModelSpec

_ATTEMPTS_LOOKED_AT: Final = 6_000
"""The latest ones: a provider changes, and what it did last year says little."""
_SHORT_CHARS: Final = 200
_LONG_CHARS: Final = 800
_TOKENS_PER_MILLION: Final = 1_000_000


class Kind(NamedTuple):
    """Requests that cost about the same: resolution, input images, and the length of the prompt in three steps."""

    resolution: str
    input_images: int
    length: int

    @classmethod
    def of(cls, request: Request, spec: ModelSpec) -> "Kind":
        """The kind of a request."""
        chars = len(request.prompt)
        length = 0 if chars <= _SHORT_CHARS else 1 if chars <= _LONG_CHARS else 2
        return cls(request.resolution or spec.default_resolution, len(request.image_urls), length)


@dataclass(frozen=True, slots=True)
class Experience:
    """What one finished item cost, as a multiple of what its request was expected to cost, and the attempts it took."""

    kind: Kind
    ratio: float
    attempts: int


@dataclass(frozen=True, slots=True)
class History:
    """The latest experiences, newest first, and the latest latencies (seconds) by resolution."""

    experiences: Sequence[Experience] = ()
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Expectation:
    """What requests are expected to cost in micro-dollars, if they succeed at once, by the prices of one UTC day."""

    def __init__(self, spec: ModelSpec, day: date) -> None:
        """Raises `UserError` when no price list covers the day."""
        self._spec = spec
        self._prices = spec.price_at(day)
        # A million prompts have few different lengths; exact fractions are slow.
        self._known: dict[tuple[str, int, int], float] = {}

    def micros(self, request: Request) -> float:
        """For one request."""
        resolution = request.resolution or self._spec.default_resolution
        key = resolution, len(request.prompt), len(request.image_urls)
        micros = self._known.get(key)
        if micros is None:
            micros = self._known[key] = self._micros(*key)
        return micros

    def _micros(self, resolution: str, chars: int, input_images: int) -> float:
        prices, estimates = self._prices, self._spec.estimates
        prompt_tokens = Fraction(estimates.typical_prompt_tokens_per_char) * chars
        input_tokens = prompt_tokens + input_images * estimates.input_image_tokens
        usd = (
            Fraction(prices.image_per_resolution[resolution])
            + estimates.typical_text_tokens * Fraction(prices.text_output_per_million) / _TOKENS_PER_MILLION
            + input_tokens * Fraction(prices.input_per_million) / _TOKENS_PER_MILLION
        )
        return float(usd * MICROS_PER_USD)


def history(ledger: Ledger, spec: ModelSpec) -> History:
    """The experience of a ledger with a model."""
    with ledger.database.read() as connection:
        experiences = _experiences(connection, spec)
    return History(experiences, ledger.latencies(spec.name))


def _experiences(connection: Connection, spec: ModelSpec) -> list[Experience]:
    items, attempts, requests = schema.items, schema.attempts, schema.requests
    # Ids begin with the time, so the latest are found by the primary key.
    latest = (
        sa.select(attempts.c.item_id, attempts.c.request_hash)
        .where(attempts.c.model == spec.name)
        .order_by(attempts.c.attempt_id.desc())
        .limit(_ATTEMPTS_LOOKED_AT)
        .subquery()
    )
    pairs = sa.select(latest.c.item_id, latest.c.request_hash).distinct().subquery()
    still_open = sa.func.sum(sa.case((attempts.c.state.in_([state.value for state in OPEN_STATES]), 1), else_=0))
    query = (
        sa.select(
            requests.c.body,
            sa.func.min(attempts.c.day).label("day"),
            sa.func.sum(attempts.c.cost_micros).label("cost_micros"),
            sa.func.count().label("attempts"),
        )
        .select_from(
            pairs.join(
                attempts,
                sa.and_(attempts.c.item_id == pairs.c.item_id, attempts.c.request_hash == pairs.c.request_hash),
            )
            .join(requests, requests.c.request_hash == pairs.c.request_hash)
            .join(items, items.c.item_id == pairs.c.item_id)
        )
        .where(
            # What a person asked for beyond that is no part of what an item costs by itself.
            attempts.c.cause.in_([Cause.NEW.value, Cause.RETRY.value, Cause.RESUBMIT.value]),
            sa.or_(
                items.c.request_hash != pairs.c.request_hash,
                items.c.state.in_([ItemState.DONE.value, ItemState.FAILED.value]),
            ),
        )
        .group_by(pairs.c.item_id, pairs.c.request_hash, requests.c.body)
        .having(still_open == 0)
        .order_by(sa.func.max(attempts.c.attempt_id).desc())
    )
    of_day: dict[str, Expectation] = {}
    experiences: list[Experience] = []
    for row in connection.execute(query):
        request = Request.from_json(row.body)
        if row.day not in of_day:
            of_day[row.day] = _expectation_of(spec, date.fromisoformat(row.day))
        expected = of_day[row.day].micros(request)
        # What was free says nothing of what others cost.
        if not expected:
            continue
        ratio = int(row.cost_micros) / expected
        experiences.append(Experience(Kind.of(request, spec), ratio, row.attempts))
    return experiences


def _expectation_of(spec: ModelSpec, day: date) -> Expectation:
    # A day that no list covers was priced by the nearest one; for an estimate any is near enough.
    covered = any(prices.covers(day) for prices in spec.prices)
    return Expectation(spec, day if covered else spec.prices[-1].valid_from)
