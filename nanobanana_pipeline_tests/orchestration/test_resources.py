"""The resource: settings to fields and back, the key by name only, and whose work a ledger holds."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr, ValidationError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.access import account_of
from nanobanana_pipeline.ledger.ledger import Stamp
from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.resources import NanoBananaResource, mode_of
from nanobanana_pipeline.settings import Settings, load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess


def test_settings_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run must work with what the environment said when Dagster started, to the micro-dollar."""
    for name, value in {"BUDGET_USD": "0.29", "IMAGE_HOSTS": "a.example, b.example", "MAX_IN_FLIGHT": "7"}.items():
        monkeypatch.setenv(f"NANOBANANA_{name}", value)
    settings = load_settings()
    assert NanoBananaResource.from_settings(settings).settings() == settings
    assert NanoBananaResource.from_settings(settings).settings().budget_usd == Decimal("0.29")


def test_what_a_run_sets_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launchpad shows the fields: what is typed there is what happens, an emptied field too."""
    monkeypatch.setenv("NANOBANANA_BUDGET_RUN_USD", "5")
    monkeypatch.setenv("NANOBANANA_OUTPUT", "elsewhere")
    settings = NanoBananaResource(output="here").settings()
    assert settings.output == "here"
    assert settings.budget_run_usd is None


def test_every_setting_is_a_field_with_its_bounds_and_its_description() -> None:
    """A knob that the pages don't show is one that nobody finds; and a bound must hold there too."""
    fields = NanoBananaResource.model_fields
    assert set(Settings.model_fields) <= set(fields)
    for name, setting in Settings.model_fields.items():
        assert fields[name].description == setting.description
    with pytest.raises(ValidationError, match="max_in_flight"):
        NanoBananaResource(max_in_flight=0)
    with pytest.raises(ValidationError, match="budget_usd"):
        NanoBananaResource(budget_usd=-1)


def test_secrets_are_given_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster shows a resource's values on a page, and keeps them in its database."""
    monkeypatch.setenv("NANOBANANA_API_KEY", "a-secret-key")
    monkeypatch.setenv("NANOBANANA_LEDGER_URL", "postgresql://me:a-password@db/ledger")
    resource = NanoBananaResource.from_settings(load_settings())
    assert isinstance(resource.api_key, dg.EnvVar)
    assert isinstance(resource.ledger_url, dg.EnvVar)
    assert "a-secret-key" not in repr(resource)
    assert "a-password" not in repr(resource)
    assert "a-secret-key" not in repr(NanoBananaResource(api_key="a-secret-key"))


@pytest.mark.parametrize("name", ["api_key", "ledger_url", "alert_webhook", "alert_smtp"])
def test_a_secret_given_by_value_is_refused(name: str) -> None:
    """It would be on the resource's page for everyone to read, and in Dagster's database for good."""
    by_value: Any = {name: "a-secret-value"}
    by_name: Any = {name: dg.EnvVar("MY_SECRET")}
    with pytest.raises(UserError, match="EnvVar") as caught:
        build_defs(resources={"nano_banana": NanoBananaResource(**by_value)})
    assert "a-secret-value" not in str(caught.value)
    assert build_defs(resources={"nano_banana": NanoBananaResource(**by_name)})


def test_a_wrong_setting_names_its_variable() -> None:
    """It may have been typed into the launchpad, whose bounds are not the settings' own."""
    with pytest.raises(UserError, match="NANOBANANA_BASE_URL"):
        NanoBananaResource(base_url="ftp://example.com").settings()


def test_a_new_ledger_is_stamped_with_who_answers(tmp_path: Path, simulator: Callable[..., SimulatorProcess]) -> None:
    """A simulator behind a base URL is one all the same: its rows must never mix with real ones."""
    running = simulator()
    resource = NanoBananaResource(api_key=running.api_key, base_url=running.base_url, output=str(tmp_path))
    with resource.open_workspace() as workspace:
        assert workspace.ledger.stamp == Stamp("simulated", running.base_url)
        assert mode_of(workspace) == "simulated"
        with resource.provider(workspace) as access:
            assert access.stamp == workspace.ledger.stamp


def test_the_providers_own_address_is_live_without_asking(tmp_path: Path) -> None:
    """With a key and no base URL there is no doubt; and reading a catalogue must work without a network."""
    with NanoBananaResource(api_key="a-key", output=str(tmp_path)).open_workspace() as workspace:
        assert mode_of(workspace) == "live"


def test_a_ledger_of_real_work_takes_none_of_a_simulators(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess]
) -> None:
    """A mistyped base URL must not make simulated images count as done."""
    running = simulator()
    with NanoBananaResource(api_key="a-key", output=str(tmp_path)).open_workspace():
        pass
    resource = NanoBananaResource(api_key=running.api_key, base_url=running.base_url, output=str(tmp_path))
    with (
        resource.open_workspace() as workspace,
        pytest.raises(UserError, match="holds live work"),
        resource.provider(workspace),
    ):
        pass


def test_limits_are_learnt_for_an_account_and_no_key_can_be_read_from_its_name() -> None:
    """What 429s taught about one key says nothing about another; and the ledger is no place for a key."""
    stamp = Stamp("live", "https://api.example.com")
    one, other = (account_of(stamp, SecretStr(key)) for key in ("key-one", "key-two"))
    assert one != other
    assert "key-one" not in one
    assert one.startswith("https://api.example.com#")


def test_a_live_api_without_a_key_is_one_line(tmp_path: Path) -> None:
    """A base URL alone is no account: every submit would be refused, one by one."""
    resource = NanoBananaResource(base_url="http://127.0.0.1:9", output=str(tmp_path))
    with resource.open_workspace() as workspace:
        with pytest.raises(UserError, match="can't reach the API"), resource.provider(workspace):
            pass
        assert mode_of(workspace).startswith("not known yet")
