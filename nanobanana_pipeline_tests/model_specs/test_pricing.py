"""The arithmetic of costs and reservations."""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.model_specs.pricing import Usage, cost_of, reservation
from nanobanana_pipeline_tests.model_specs.test_loader import OWN_PRICES

SPEC = load_spec()
DAY = date(2026, 9, 1)
tokens = st.none() | st.integers(0, 100_000)


def _micros(usage: Usage | None, resolution: str | None = "1K", images: int = 1) -> int:
    return cost_of(SPEC, usage, resolution=resolution, images=images, day=DAY).micros


@pytest.mark.parametrize(
    ("resolution", "micros"), [("0.5K", 44_820), ("1K", 67_200), ("2K", 100_800), ("4K", 151_200), (None, 67_200)]
)
def test_without_usage_the_tier_prices_the_image(resolution: str | None, micros: int) -> None:
    """Usage may be absent; the image was still paid for."""
    assert _micros(None, resolution) == micros
    assert _micros(Usage(), resolution) == micros


def test_measured_call() -> None:
    """The one measured call: 1120 of 1416 tokens are image at 60 dollars a million, the rest text at 3."""
    assert _micros(Usage(prompt_tokens=10, completion_tokens=1416, total_tokens=1426)) == 67_200 + 888 + 5


def test_image_tokens_are_not_priced_as_text() -> None:
    """A peer priced image tokens as text and showed a twentieth of the invoice."""
    assert _micros(Usage(prompt_tokens=0, completion_tokens=2240), images=2) == 2 * 67_200


def test_fewer_tokens_than_the_tier_cost_less() -> None:
    """The tier is a ceiling of image tokens, not a minimum charge."""
    assert _micros(Usage(prompt_tokens=0, completion_tokens=560)) == 33_600


def test_no_image_is_priced_as_one() -> None:
    """A task that completed without an image was billed all the same."""
    assert _micros(None, images=0) == 67_200


def test_total_alone_is_used() -> None:
    """When only the total comes, dropping it would forget money."""
    assert _micros(Usage(prompt_tokens=100, total_tokens=1320)) == 67_200 + 300 + 50


def test_provider_cost_wins() -> None:
    """The provider's own figure is what the invoice will say."""
    cost = cost_of(SPEC, Usage(1, 2, 3, cost_micros=70_001), resolution="4K", images=1, day=DAY)
    assert (cost.micros, cost.source) == (70_001, "provider")


def test_provider_cost_of_zero_is_a_cost() -> None:
    """A free image is not one without a price."""
    assert cost_of(SPEC, Usage(cost_micros=0), resolution="1K", images=1, day=DAY).micros == 0


def test_half_a_micro_rounds_up() -> None:
    """One rounding rule, or two tables of the same money differ by a micro-dollar."""
    assert _micros(Usage(prompt_tokens=1, completion_tokens=0)) == 1
    assert _micros(Usage(prompt_tokens=3, completion_tokens=0)) == 2


def test_rounded_once(tmp_path: Path) -> None:
    """Parts rounded one by one would drift from the invoice."""
    path = tmp_path / "prices.toml"
    path.write_text(OWN_PRICES.replace("input_per_million = 1", "input_per_million = 0.30").replace("4.00", "0.30"))
    cost = cost_of(load_spec(prices=path), Usage(1, 1121), resolution="1K", images=1, day=date(2026, 2, 1))
    assert cost.micros == 50_001


def test_spent_money_is_booked_after_the_list_ran_out(tmp_path: Path) -> None:
    """A task that ends after its price list is still paid: it is booked at the nearest list, never lost."""
    path = tmp_path / "prices.toml"
    path.write_text(OWN_PRICES)
    spec = load_spec(prices=path)
    cost = cost_of(spec, None, resolution="1K", images=1, day=date(2026, 7, 1))
    assert (cost.micros, cost.price_version) == (50_000, "contract-7")
    with pytest.raises(UserError):
        reservation(spec, 10, 0, "1K", date(2026, 7, 1))


@pytest.mark.parametrize("day", [date(2026, 1, 31), date(2026, 2, 1)])
def test_each_day_has_its_price(tmp_path: Path, day: date) -> None:
    """Prices change at midnight UTC; both ends of a list belong to it."""
    path = tmp_path / "prices.toml"
    january = OWN_PRICES.replace("2026-06-30", "2026-01-31").replace("contract-7", "january")
    path.write_text(january + OWN_PRICES.replace("2026-01-01", "2026-02-01").replace("contract-7", "february"))
    assert cost_of(load_spec(prices=path), None, resolution="1K", images=1, day=day).price_version == (
        "january" if day.month == 1 else "february"
    )


def test_unknown_resolution_is_one_line() -> None:
    """What has no price is refused."""
    with pytest.raises(UserError, match=r"choose one of 0\.5K, 1K, 2K, 4K"):
        reservation(SPEC, 10, 0, "8K", DAY)


def test_reservation_covers_the_measured_call() -> None:
    """A settlement above its reservation stops a run, so ordinary answers must stay below it."""
    assert reservation(SPEC, 40, 0, "1K", DAY) >= _micros(Usage(10, 1416, 1426))


def test_reservation_is_realistic() -> None:
    """A worst-case reservation blocked a peer's run with nothing spent: within a quarter of the tier's price here."""
    for name in SPEC.resolutions:
        assert reservation(SPEC, 200, 0, name, DAY) <= 1.25 * _micros(None, name)


@given(st.integers(1, 2500), st.integers(0, 3), st.sampled_from(SPEC.resolutions))
def test_reservation_is_never_below_the_tier(chars: int, inputs: int, resolution: str) -> None:
    """The cap holds only if no image is let in for less than it will cost."""
    held = reservation(SPEC, chars, inputs, resolution, DAY)
    assert held >= _micros(Usage(inputs * 1120 + chars, SPEC.image_tokens(resolution)), resolution)


@given(tokens, tokens, tokens, st.sampled_from(SPEC.resolutions), st.integers(0, 4))
def test_cost_is_never_negative_and_grows_with_tokens(
    prompt: int | None, completion: int | None, total: int | None, resolution: str, images: int
) -> None:
    """Whatever an answer counts, its cost is money, and more tokens never cost less."""
    cost = _micros(Usage(prompt, completion, total), resolution, images)
    assert cost >= 0
    if completion is not None:
        assert _micros(Usage(prompt, completion + 1, total), resolution, images) >= cost
