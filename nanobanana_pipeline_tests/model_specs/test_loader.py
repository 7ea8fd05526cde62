"""Loading model specs and users' price files."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.loader import known_models, load_spec
from nanobanana_pipeline.model_specs.spec import ModelSpec, SubmitRule

OWN_PRICES = """
[[prices]]
version = "contract-7"
valid_from = 2026-01-01
valid_to = 2026-06-30
currency = "USD"
source = "our contract"
input_per_million = 1
text_output_per_million = 4.00
image_output_per_million = 50.00
image_per_resolution = { "0.5K" = 0.03, "1K" = 0.05, "2K" = 0.08, "4K" = 0.12 }
"""


@pytest.fixture
def spec() -> ModelSpec:
    """The spec as shipped."""
    return load_spec()


def _price_file(folder: Path, text: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_spec_holds_the_contract(spec: ModelSpec) -> None:
    """These values are the provider's contract: a slip in the data would be paid for at every call."""
    assert (spec.limits.prompt_min_chars, spec.limits.prompt_max_chars, spec.limits.image_urls_max) == (1, 2500, 3)
    assert len(spec.aspect_ratios) == len(set(spec.aspect_ratios)) == 14
    assert spec.resolutions == ("0.5K", "1K", "2K", "4K")
    assert spec.default_resolution == "1K"
    assert [spec.image_tokens(name) for name in spec.resolutions] == [747, 1120, 1680, 2520]
    assert {"005001095", "005001096", "005001097", "005001098"} <= set(spec.errors.codes)
    assert not any(code.billed for code in spec.errors.codes.values())


@pytest.mark.parametrize(("resolution", "scale"), [("0.5K", 0.5), ("1K", 1), ("2K", 2), ("4K", 4)])
def test_sizes_scale_with_the_resolution(spec: ModelSpec, resolution: str, scale: float) -> None:
    """The tables are typed out; halving, doubling and quadrupling catches a mistyped one."""
    for ratio in spec.aspect_ratios:
        base, size = spec.expected_size(ratio, "1K"), spec.expected_size(ratio, resolution)
        assert base is not None
        assert size == (base[0] * scale, base[1] * scale)
        width, height = map(int, ratio.split(":"))
        assert base[0] / base[1] == pytest.approx(width / height, rel=0.05)


def test_expected_size_without_ratio_is_open(spec: ModelSpec) -> None:
    """A request that leaves the ratio to the model has no size to be held against."""
    assert spec.expected_size(None, "4K") is None
    assert spec.expected_size("16:9", None) == (1376, 768)


@pytest.mark.parametrize(
    ("status", "outcome", "kind"),
    [
        (200, "accepted", None),
        (401, "refused", ErrorKind.AUTH),
        (403, "refused", ErrorKind.BALANCE),
        (429, "refused", ErrorKind.RATE_LIMITED),
        (500, "refused", ErrorKind.RETRYABLE),
        (503, "refused", ErrorKind.RETRYABLE),
        (502, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (504, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (418, "refused", ErrorKind.INVALID_REQUEST),
        (599, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (302, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (777, "unknown", ErrorKind.UNKNOWN_OUTCOME),
    ],
)
def test_submit_statuses(spec: ModelSpec, status: int, outcome: str, kind: ErrorKind | None) -> None:
    """A status taken for a refusal when it may have been billed is how a picture gets paid twice."""
    rule = spec.submit.rule(status)
    assert (rule.outcome, rule.kind) == (outcome, kind)


def test_submit_rule_must_make_sense() -> None:
    """A spec that calls a refusal unknown, or an acceptance an error, must not load."""
    with pytest.raises(ValidationError):
        SubmitRule(outcome="refused", kind=ErrorKind.UNKNOWN_OUTCOME, meaning="x")
    with pytest.raises(ValidationError):
        SubmitRule(outcome="accepted", kind=ErrorKind.AUTH, meaning="x")


@pytest.mark.parametrize(
    ("word", "state"),
    [("in_progress", "running"), ("COMPLETED", "completed"), ("done", "completed"), ("failed", "failed")],
)
def test_status_words(spec: ModelSpec, word: str, state: str) -> None:
    """Status words come in several spellings, all of which mean the same."""
    assert spec.statuses.state_of(word) == state


def test_unheard_of_status_keeps_polling(spec: ModelSpec) -> None:
    """A new word must not end a paid task as failed."""
    assert spec.statuses.state_of("teleporting") == "running"


def test_unknown_model_names_the_known_ones() -> None:
    """A mistyped model is answered with what to type instead; a path is not a model."""
    for name in ("nano_banana_9", "../spec", ""):
        with pytest.raises(UserError, match="nano_banana_2"):
            load_spec(name)
    assert known_models() == ("nano_banana_2",)


def test_own_prices_win(tmp_path: Path) -> None:
    """The reseller's price is not published: who knows it better than the list must be able to say so."""
    spec = load_spec(prices=_price_file(tmp_path, OWN_PRICES))
    prices = spec.price_at(date(2026, 6, 30))
    assert prices.version == "contract-7"
    assert prices.image_per_resolution["1K"] == Decimal("0.05")


def test_day_without_price_is_refused(tmp_path: Path) -> None:
    """When the user's list has run out, falling back to a list price would spend at a price nobody agreed to."""
    spec = load_spec(prices=_price_file(tmp_path, OWN_PRICES))
    with pytest.raises(UserError, match=r"2026-07-01.*NANOBANANA_PRICES"):
        spec.price_at(date(2026, 7, 1))


def test_changed_price_file_is_seen(tmp_path: Path) -> None:
    """A daemon lives for weeks: it must not keep the prices it started with."""
    path = _price_file(tmp_path, OWN_PRICES)
    assert load_spec(prices=path).prices[0].version == "contract-7"
    _price_file(tmp_path, OWN_PRICES.replace("contract-7", "contract-8"))
    assert load_spec(prices=path).prices[0].version == "contract-8"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"1K" = 0.05, ', "", "must price exactly 0.5K, 1K, 2K, 4K"),
        ("0.05", "-0.05", "image_per_resolution.1K"),
        ("0.05", '"cheap"', "image_per_resolution.1K"),
        ("0.05", "true", "image_per_resolution.1K"),
        ("0.05", "inf", "image_per_resolution.1K"),
        ('currency = "USD"', 'currency = "EUR"', "currency"),
        ("2026-06-30", "2025-06-30", "before valid_from"),
        ("input_per_million = 1", "", "input_per_million"),
        ('source = "our contract"', 'source = "our contract"\ndiscount = 3', "discount"),
        ("[[prices]]", "model = 3\n[[prices]]", "nothing else"),
        ("[[prices]]", "[[prices", "is not TOML"),
        (OWN_PRICES, OWN_PRICES + OWN_PRICES, "both in force"),
        (OWN_PRICES, "", "must hold"),
        (OWN_PRICES, "prices = []", "prices"),
    ],
)
def test_wrong_price_file_is_one_clear_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    """Prices are written by hand: a slip is answered with the file and the place, never with a traceback."""
    path = _price_file(tmp_path, OWN_PRICES.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_spec(prices=path)
    message = str(caught.value)
    assert str(path) in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["", "missing.toml"])
def test_unreadable_price_file(tmp_path: Path, name: str) -> None:
    """A path that is a folder, or not there, is named with the variable to correct."""
    with pytest.raises(UserError, match="NANOBANANA_PRICES"):
        load_spec(prices=tmp_path / name)


def test_a_price_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    """The mark that it begins with was a statement that is no TOML, at a place where nothing can be seen."""
    path = _price_file(tmp_path, f"\ufeff{OWN_PRICES}")
    assert load_spec(prices=path).prices[0].version == "contract-7"


def test_price_file_of_another_encoding(tmp_path: Path) -> None:
    """Bytes that are no text are as wrong as words that are no TOML."""
    path = tmp_path / "prices.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not TOML"):
        load_spec(prices=path)
