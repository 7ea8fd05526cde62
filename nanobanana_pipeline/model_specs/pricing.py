"""What an attempt costs, and what to reserve for it: pure arithmetic over a model spec's dated prices.

Money is whole micro-dollars outside this module, and an exact fraction inside it, rounded once. Budgets and bookings
are the ledger's.
"""

import math
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Literal

from nanobanana_pipeline.model_specs.spec import ModelSpec, PriceList

MICROS_PER_USD = 1_000_000
_TOKENS_PER_MILLION = 1_000_000

CostSource = Literal["provider", "price_list"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the provider says an attempt used; None for what it doesn't say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cost_micros: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What an attempt cost in micro-dollars, who says so, and the version of the price list then in force."""

    micros: int
    source: CostSource
    price_version: str


def cost_of(spec: ModelSpec, usage: Usage | None, *, resolution: str | None, images: int, day: date) -> Cost:
    """The cost of a completed attempt that gave `images` images, by the prices of the UTC day it was reserved on.

    The provider's own figure wins. Else image tokens are priced by the resolution's tier, the rest of the completion as
    text and the prompt as input; without token counts it is the tier's price an image, and at least one image.
    Never raises for a day without prices: the money is already spent, so the nearest list in time prices it.
    """
    prices = _prices_for_settling(spec, day)
    if usage is not None and usage.cost_micros is not None:
        return Cost(usage.cost_micros, "provider", prices.version)
    usd = _usd_of_tokens(spec, prices, usage or Usage(), resolution, max(1, images))
    return Cost(_round_half_up(usd * MICROS_PER_USD), "price_list", prices.version)


def reservation(
    spec: ModelSpec, request_prompt_chars: int, input_images: int, resolution: str | None, day: date
) -> int:
    """Micro-dollars to set aside for one image before its request is sent: realistic, and rather more than less.

    Raises `UserError` when no price list covers the day.
    """
    prices = spec.price_at(day)
    estimates = spec.estimates
    prompt_tokens = _fraction(estimates.prompt_tokens_per_char) * request_prompt_chars
    input_tokens = prompt_tokens + input_images * estimates.input_image_tokens
    usd = (
        _image_price(spec, prices, resolution)
        + estimates.reserve_text_tokens * _per_token(prices.text_output_per_million)
        + input_tokens * _per_token(prices.input_per_million)
    )
    return math.ceil(usd * MICROS_PER_USD)


def _usd_of_tokens(spec: ModelSpec, prices: PriceList, usage: Usage, resolution: str | None, images: int) -> Fraction:
    tier_tokens = spec.image_tokens(resolution)
    completion = _completion_tokens(usage)
    if completion is None:
        completion = tier_tokens * images
    image_tokens = min(completion, tier_tokens * images)
    return (
        image_tokens * _image_price(spec, prices, resolution) / tier_tokens
        + (completion - image_tokens) * _per_token(prices.text_output_per_million)
        + (usage.prompt_tokens or 0) * _per_token(prices.input_per_million)
    )


def _completion_tokens(usage: Usage) -> int | None:
    """Completion tokens, from the total when only that is given; None when the answer counts none."""
    if usage.completion_tokens is not None or usage.total_tokens is None:
        return usage.completion_tokens
    return max(0, usage.total_tokens - (usage.prompt_tokens or 0))


def _image_price(spec: ModelSpec, prices: PriceList, resolution: str | None) -> Fraction:
    spec.tier(resolution)
    return _fraction(prices.image_per_resolution[resolution or spec.default_resolution])


def _prices_for_settling(spec: ModelSpec, day: date) -> PriceList:
    def days_away(prices: PriceList) -> int:
        if prices.covers(day):
            return 0
        ends = [prices.valid_from, prices.valid_to or prices.valid_from]
        return min(abs((day - end).days) for end in ends)

    return min(spec.prices, key=days_away)


@cache
def _per_token(per_million: Decimal) -> Fraction:
    return Fraction(per_million) / _TOKENS_PER_MILLION


@cache
def _fraction(value: Decimal) -> Fraction:
    """Made once for each price: an item needs ten of them, and making one takes as long as reckoning with it."""
    return Fraction(value)


def _round_half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
