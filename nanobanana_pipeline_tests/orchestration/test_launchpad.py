"""What can be typed into the launchpad, and what is refused before it makes a run."""

from typing import Any

import dagster as dg
import pytest
from dagster import DagsterInvalidConfigError
from pydantic import ValidationError

from nanobanana_pipeline.ledger.work import Rerun
from nanobanana_pipeline.orchestration.bounds import config_fields
from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.jobs import generation_config
from nanobanana_pipeline.orchestration.launchpad import GenerationConfig
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.settings import load_settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("limit", -1, "greater than or equal to 0"),
        ("limit", 10_000_001, "less than or equal to 10000000"),
        ("max_cost_usd", -0.01, "greater than or equal to 0"),
        ("max_cost_usd", 1e9, "less than or equal to 1000000"),
        ("regenerate", "yes", "Bool"),
        ("limits", 3, "limits"),
    ],
)
def test_a_wrong_value_is_refused_before_a_run_starts(name: str, value: object, said: str) -> None:
    """Bounds that hold only once the run has started make a failed run of each typing error."""
    job = build_defs().resolve_job_def("generate_images")
    with pytest.raises(DagsterInvalidConfigError, match=said):
        dg.validate_run_config(job, {"ops": {"generation": {"config": {name: value}}}})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("budget_usd", -1, "greater than or equal to 0"),
        ("budget_usd", 0.1234567, "no more than 6 decimal places"),
        ("budget_usd", None, "must not be None"),
        ("budget_run_usd", -0.01, "greater than or equal to 0"),
        ("max_in_flight", 0, "max_in_flight: Input should be greater than or equal to 1"),
        ("max_in_flight", {"env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"),
        ("alert_error_rate", 1.5, "less than or equal to 1"),
        ("base_url", "ftp://example.com", "should match pattern"),
        ("verify", "hastily", "not in enum"),
        ("budget", 3, 'unexpected config entry "budget"'),
    ],
)
def test_a_wrong_value_of_the_resource_is_refused_before_a_run_starts(name: str, value: object, said: str) -> None:
    """The budget stands there, too: what the environment would be refused for, the launchpad must not take."""
    job = build_defs().resolve_job_def("generate_images")
    with pytest.raises(DagsterInvalidConfigError, match=said):
        dg.validate_run_config(job, {"resources": {"nano_banana": {"config": {name: value}}}})


@pytest.mark.parametrize("name", ["api_key", "ledger_url", "alert_webhook", "alert_smtp"])
def test_a_secret_is_typed_by_the_name_of_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By value it would stand in the run's config, on its page and in Dagster's database, for good."""
    job = build_defs().resolve_job_def("generate_images")
    with pytest.raises(DagsterInvalidConfigError, match=f"{name} must be a dict") as refused:
        dg.validate_run_config(job, {"resources": {"nano_banana": {"config": {name: "a-secret-value"}}}})
    assert "a-secret-value" not in str(refused.value)
    monkeypatch.setenv("MY_SECRET", "a-secret-value")
    filled = dg.validate_run_config(job, {"resources": {"nano_banana": {"config": {name: {"env": "MY_SECRET"}}}}})
    assert filled is not None
    assert filled["resources"]["nano_banana"]["config"][name] == "a-secret-value"


def test_one_value_of_the_resource_is_changed_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed alone, it used to set all others back: the budget to 100 dollars, and the key to none."""
    monkeypatch.setenv("NANOBANANA_API_KEY", "a-key")
    monkeypatch.setenv("NANOBANANA_BUDGET_USD", "0.5")
    monkeypatch.setenv("NANOBANANA_IMAGE_HOSTS", "a.example")
    config = {"resources": {"nano_banana": {"config": {"max_in_flight": 3}}}}
    seen: list[NanoBananaResource] = []

    @dg.op
    def look(nano_banana: NanoBananaResource) -> None:
        seen.append(nano_banana)

    @dg.job
    def looking() -> None:
        look()

    resource = NanoBananaResource.from_settings(load_settings())
    assert looking.execute_in_process(run_config=config, resources={"nano_banana": resource}).success
    settings = seen[0].settings()
    assert settings == load_settings(max_in_flight=3)
    assert settings.max_in_flight == 3
    assert not settings.simulated


def test_right_values_pass_with_the_defaults_filled_in() -> None:
    """The launchpad shows an empty editor at first: nothing must have to be typed."""
    job = build_defs().resolve_job_def("generate_images")
    filled = dg.validate_run_config(job, {"ops": {"generation": {"config": {"limit": 5, "max_cost_usd": 1}}}})
    assert filled is not None
    assert filled["ops"]["generation"]["config"] == {
        "limit": 5,
        "retry_failed": False,
        "resubmit_unknown": False,
        "regenerate": False,
        "items": "",
        "allow_duplicates": False,
        "max_cost_usd": 1.0,
    }


def test_every_field_has_a_default_and_says_what_it_does() -> None:
    """The launchpad shows these texts beside the editor, and nothing else."""
    for name, field in config_fields(GenerationConfig).items():
        assert not field.is_required, name
        assert len(field.description or "") > 40, name


@pytest.mark.parametrize(
    ("options", "rerun"),
    [
        ({}, None),
        ({"retry_failed": True}, Rerun.RETRY_FAILED),
        ({"regenerate": True}, Rerun.REGENERATE),
        ({"retry_failed": True, "regenerate": True}, Rerun.REGENERATE),
    ],
)
def test_what_is_paid_for_again(options: dict[str, Any], rerun: Rerun | None) -> None:
    """To regenerate is the wider wish: it includes what failed."""
    assert GenerationConfig(**options).rerun is rerun


def test_a_cap_is_exact_to_the_digit_typed() -> None:
    """0.29 as a float is a little less than 0.29: a cap must not lose a micro-dollar to that."""
    assert GenerationConfig(max_cost_usd=0.29).max_cost_micros == 290_000
    assert GenerationConfig().max_cost_micros is None


def test_scripts_get_the_same_refusal() -> None:
    """`generation_config` is what the command and sensors make run configs with."""
    assert generation_config(limit=3)["ops"]["generation"]["config"]["limit"] == 3
    with pytest.raises(ValidationError):
        generation_config(limit=-1)
