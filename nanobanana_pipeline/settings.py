"""Every knob, once: typed, bounded, described, and read from `NANOBANANA_*`.

Nothing else in the project reads the environment. Defaults that belong to a model (its base URL, its limits) live in
the model spec, not here.

A pipeline beside the first has a name, and its own variables: of `autumn`, `NANOBANANA_AUTUMN_BUDGET_USD` wins over
`NANOBANANA_BUDGET_USD`. What it works in is never shared: its output is a folder of its own, and so is its ledger.
"""

import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nanobanana_pipeline.errors import UserError

DEMO_OUTPUT = "data/demo"
PREFIX = "NANOBANANA_"
SIMULATOR_KEY = "simulated-key"

Usd = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=6)]


def _comma_separated(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _with_scheme(*schemes: str) -> AfterValidator:
    """A secret URL of one of these schemes; a wrong one is not repeated."""

    def check(url: SecretStr) -> SecretStr:
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host")
        return url

    return AfterValidator(check)


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
HttpUrlSecret = Annotated[SecretStr, _with_scheme("https", "http")]
SmtpUrlSecret = Annotated[SecretStr, _with_scheme("smtps", "smtp")]


class Settings(BaseSettings):
    """The configuration of one pipeline, from the environment unless given by name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    pipeline: str | None = Field(
        None,
        pattern="^[a-z][a-z0-9_]*$",
        max_length=40,
        description="Which of several pipelines is meant; each has variables of its own, NANOBANANA_<NAME>_….",
    )
    api_key: SecretStr | None = Field(None, description="The provider's API key (Bearer token). Needed for real work.")
    base_url: str | None = Field(None, pattern="^https?://", description="The API's origin; default: the provider's.")
    account: str | None = Field(
        None, description="Name of the provider's account whose limits are shared; default: one for each key."
    )
    model: str = Field("nano_banana_2", description="The model spec to use: a name, or a file of your own (.toml).")
    catalogue: str = Field("data/catalogue", description="Folder or URI whose children are catalogues.")
    output: str = Field("data/output", description="Folder, or URI of an object store, for images, tables and pages.")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL of the ledger; default: SQLite in the output.")
    prices: str | None = Field(None, description="Your own price file (TOML); wins over the model spec's list prices.")
    budget_usd: Usd = Field(Decimal(100), description="The most that may be spent in one UTC day.")
    budget_run_usd: Usd | None = Field(None, description="The most that one run may spend.")
    budget_catalogue_usd: Usd | None = Field(None, description="The most that one catalogue may ever spend.")
    max_in_flight: int = Field(64, ge=1, le=100_000, description="Open tasks at the provider, at most.")
    requests_per_minute: int | None = Field(None, ge=1, description="Submits a minute, at most; default: no limit.")
    shard_size: int = Field(1000, ge=1, le=100_000, description="Prompts in a shard (one Dagster partition).")
    task_deadline_s: int = Field(900, ge=1, description="Seconds after which a task that has not ended is overdue.")
    on_unknown: Literal["hold", "resubmit"] = Field("hold", description="What to do with submits of unknown outcome.")
    max_attempts: int = Field(3, ge=1, le=20, description="Attempts of an item after provider failures, at most.")
    verify: Literal["full", "structure"] = Field(
        "full", description="How closely an image is checked before it counts."
    )
    on_unusable: Literal["keep", "regenerate"] = Field("keep", description="What to do after a paid, unusable image.")
    approve_above_usd: Usd | None = Field(None, description="Runs that may cost more (P90) wait for approval.")
    image_hosts: CommaSeparated = Field(
        (), description="Hosts that images may be fetched from (comma separated); default: any public one."
    )
    link_hours: int = Field(
        168,
        ge=0,
        le=168,
        description="How long the links of pages in an object store work; 0: plain paths, for a bucket that a web "
        "server shows.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="How the engine's log lines are written; json is one object a line."
    )
    alert_webhook: HttpUrlSecret | None = Field(
        None, description="Where alerts are sent as JSON, by POST (a chat's incoming webhook, say)."
    )
    alert_email: CommaSeparated = Field((), description="Addresses that alerts are mailed to (comma separated).")
    alert_smtp: SmtpUrlSecret | None = Field(
        None, description="The server that mails them: smtp://user:password@host:587, or smtps:// for TLS throughout."
    )
    alert_from: str | None = Field(None, description="The sender of these mails; default: nanobanana@ this host.")
    alert_error_rate: float = Field(
        0.1, ge=0, le=1, description="The share of an hour's attempts without an image from which on an alert is sent."
    )

    @property
    def simulated(self) -> bool:
        """Whether, with neither key nor base URL, only the simulator can be meant."""
        return self.api_key is None and self.base_url is None

    @property
    def workspace(self) -> str:
        """The output in use: simulated work never mixes with real work, so it has a folder of its own."""
        if not self.simulated:
            return self.output
        return DEMO_OUTPUT if self.pipeline is None else _folder_in(DEMO_OUTPUT, self.pipeline)

    @property
    def ledger(self) -> str:
        """The ledger's SQLAlchemy URL."""
        if self.ledger_url is not None and not self.simulated:
            return self.ledger_url
        if "://" in self.workspace:
            raise UserError(
                f"NANOBANANA_OUTPUT={self.workspace} is remote, and a SQLite ledger can't live there: "
                f"set {_prefix_of(self.pipeline) if self.pipeline else PREFIX}LEDGER_URL to a PostgreSQL URL"
            )
        return f"sqlite:///{Path(self.workspace).absolute() / 'ledger.sqlite'}"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` on top. Raises `UserError` naming each wrong variable.

    With `pipeline` among them, or in NANOBANANA_PIPELINE, those of that pipeline.
    """
    settings = _read(PREFIX, overrides)
    name = settings.pipeline
    if name is None or overrides.keys() >= Settings.model_fields.keys():
        return settings
    own = _read(_prefix_of(name), {})
    given = {field: getattr(own, field) for field in own.model_fields_set} | {"pipeline": name} | overrides
    # Two pipelines in one output, or on one ledger, would work on each other's items.
    return _read(PREFIX, {"output": _folder_in(settings.output, name), "ledger_url": None} | given)


def variable_of(pipeline: str | None, field: str) -> str:
    """The environment variable that a setting of a pipeline comes from."""
    own = f"{_prefix_of(pipeline)}{field.upper()}" if pipeline else ""
    return own if os.environ.get(own) else f"{PREFIX}{field.upper()}"  # noqa: TID251 - this is settings.py


def _read(prefix: str, given: dict[str, Any]) -> Settings:
    try:
        return Settings(_env_prefix=prefix, **given)  # pyright: ignore[reportCallIssue] (the settings library's own)
    except ValidationError as error:
        # The rejected input is left out on purpose: for the key it would be the secret itself.
        wrong = "; ".join(f"{prefix}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors() if e["loc"])
        raise UserError(f"wrong settings: {wrong}; correct the environment and try again") from None


def _prefix_of(pipeline: str) -> str:
    return f"{PREFIX}{pipeline.upper()}_"


def _folder_in(output: str, pipeline: str) -> str:
    return f"{output.rstrip('/')}/pipelines/{pipeline}"
