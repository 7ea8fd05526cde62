"""The one resource of the pipeline: where it reads, writes and generates, and how to reach the provider.

What the knobs mean and their bounds are in `settings`; here they become fields that the user interface can show.
Nothing is opened, started or created until an asset or a sensor asks for it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, Self

import annotated_types
import dagster as dg
from dagster._core.definitions.definition_config_schema import DefinitionConfigSchema
from pydantic import Field, SecretStr

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.access import Access, expected_stamp, reach
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.orchestration.bounds import resource_fields
from nanobanana_pipeline.settings import DEMO_OUTPUT, Settings, load_settings, variable_of
from nanobanana_pipeline.simulator.shared import shared_simulator

SIMULATOR_FOLDER: Final = f"{DEMO_OUTPUT}/simulator"

# What may hold a password: shown in the user interface, and kept in run configs, as the variable's name alone.
_SECRETS: Final = ("api_key", "ledger_url", "alert_webhook", "alert_smtp")


def _knob(name: str) -> Any:
    """A field with the default, bounds and description of the setting of this name."""
    setting = Settings.model_fields[name]
    default = float(setting.default) if isinstance(setting.default, Decimal) else setting.default
    bounds: dict[str, Any] = {}
    for constraint in setting.metadata:
        match constraint:
            case annotated_types.Ge(ge=bound):
                bounds["ge"] = bound
            case annotated_types.Le(le=bound):
                bounds["le"] = bound
            case _:
                pass
    if isinstance(default, tuple):
        return Field(default_factory=list, description=setting.description)
    if name in _SECRETS:
        # Not Dagster's own mark of a secret: the launchpad would fill in asterisks, and a run be started with them.
        bounds["repr"] = False
    return Field(default=default, description=setting.description, **bounds)


class NanoBananaResource(dg.ConfigurableResource):  # pyright: ignore[reportMissingTypeArgument]
    """Catalogues, output, budget and provider. Defaults come from the NANOBANANA_* environment variables."""

    pipeline: str | None = _knob("pipeline")
    api_key: str | None = _knob("api_key")
    base_url: str | None = _knob("base_url")
    account: str | None = _knob("account")
    model: str = _knob("model")
    catalogue: str = _knob("catalogue")
    output: str = _knob("output")
    ledger_url: str | None = _knob("ledger_url")
    prices: str | None = _knob("prices")
    budget_usd: float = _knob("budget_usd")
    budget_run_usd: float | None = _knob("budget_run_usd")
    budget_catalogue_usd: float | None = _knob("budget_catalogue_usd")
    max_in_flight: int = _knob("max_in_flight")
    requests_per_minute: int | None = _knob("requests_per_minute")
    shard_size: int = _knob("shard_size")
    task_deadline_s: int = _knob("task_deadline_s")
    on_unknown: Literal["hold", "resubmit"] = _knob("on_unknown")
    max_attempts: int = _knob("max_attempts")
    verify: Literal["full", "structure"] = _knob("verify")
    on_unusable: Literal["keep", "regenerate"] = _knob("on_unusable")
    approve_above_usd: float | None = _knob("approve_above_usd")
    image_hosts: list[str] = _knob("image_hosts")
    link_hours: int = _knob("link_hours")
    log_format: Literal["text", "json"] = _knob("log_format")
    alert_webhook: str | None = _knob("alert_webhook")
    alert_email: list[str] = _knob("alert_email")
    alert_smtp: str | None = _knob("alert_smtp")
    alert_from: str | None = _knob("alert_from")
    alert_error_rate: float = _knob("alert_error_rate")

    @property
    def _config_schema(self) -> DefinitionConfigSchema:
        """What Dagster checks before there is a run: its own schema has the types and the defaults, and no bounds."""
        inferred = super()._config_schema.as_field()
        fields = resource_fields(type(self), inferred.default_value, bounds=Settings, secrets=_SECRETS)
        return DefinitionConfigSchema(
            dg.Field(
                dg.Shape(fields),
                default_value=inferred.default_value,
                is_required=False,
                description=inferred.description,
            )
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The resource with these settings as defaults; secrets are given by the name of their variable."""
        values = settings.model_dump()
        for name, value in values.items():
            if isinstance(value, Decimal):
                values[name] = float(value)
            elif isinstance(value, tuple):
                values[name] = list(value)
            elif name in _SECRETS and value is not None:
                values[name] = dg.EnvVar(variable_of(settings.pipeline, name))
        return cls(**values)

    def refuse_secrets_by_value(self) -> None:
        """Raise `UserError` for a secret that is not given by its variable's name: the pages would show it."""
        for name in _SECRETS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, dg.EnvVar):
                raise UserError(
                    f"NanoBananaResource({name}=…) is a secret, and Dagster's pages show values: put it into an "
                    f'environment variable, and give {name}=dg.EnvVar("ITS_NAME")'
                )

    def settings(self) -> Settings:
        """The settings that a run works with. Raises `UserError` naming what is wrong."""
        values = {name: getattr(self, name) for name in Settings.model_fields}
        exact = {name: Decimal(str(value)) if isinstance(value, float) else value for name, value in values.items()}
        return load_settings(**exact)

    def open_workspace(self) -> Workspace:
        """Open the output: ledger, images and tables. A context manager. Raises `UserError`.

        A new ledger is stamped with whose work it will hold, and its tables say so from their first row.
        """
        settings = self.settings()
        workspace = Workspace.open(settings)
        if workspace.ledger.stamp is not None:
            return workspace
        with workspace:
            stamp = expected_stamp(workspace)
            if stamp is not None:
                workspace.ledger.claim(stamp)
        return Workspace.open(settings)

    @contextmanager
    def provider(self, workspace: Workspace) -> Generator[Access]:
        """Reach the provider (with neither key nor base URL: the simulator), and stamp the ledger with whose it is.

        Raises `UserError` before anything is spent.
        """
        settings = workspace.settings
        if not settings.simulated:
            yield reach(workspace, settings.base_url, settings.api_key)
            return
        with shared_simulator(Path(SIMULATOR_FOLDER)) as endpoint:
            yield reach(workspace, endpoint.base_url, SecretStr(endpoint.api_key))


def mode_of(workspace: Workspace) -> str:
    """`simulated` or `live`, for people."""
    stamp = workspace.ledger.stamp
    return "not known yet: nobody answers at the base URL" if stamp is None else stamp.mode
