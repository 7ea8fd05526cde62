"""The shape of a model spec: what a `<model>.toml` must hold, and look-ups over it.

Only data and look-ups: reading files is the loader's, arithmetic on money is in `pricing`, and what to do about an
error kind is the engine's.
"""

from datetime import date
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    model_validator,
)

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.model_specs.kinds import ErrorKind

TaskState = Literal["running", "completed", "failed"]
Outcome = Literal["accepted", "refused", "unknown"]


def _exact_decimal(value: Any) -> Any:
    """Keep money exact: the loader parses TOML floats to Decimal; a binary float or a truth value is a mistake."""
    if isinstance(value, bool | float):
        raise ValueError("must be a number written in decimal, such as 0.0672")  # noqa: TRY004 (pydantic wants ValueError)
    return value


Text = Annotated[str, StringConstraints(min_length=1, strict=True)]
Count = Annotated[StrictInt, Field(ge=1)]
Money = Annotated[Decimal, BeforeValidator(_exact_decimal), Field(ge=0, allow_inf_nan=False)]
HttpStatus = Annotated[str, StringConstraints(pattern=r"^[1-5]\d\d$")]
HttpClass = Annotated[str, StringConstraints(pattern=r"^[1-5]xx$")]
Code = Annotated[str, StringConstraints(pattern=r"^\d{9}$")]
Size = Annotated[tuple[Count, Count], Field(description="Width and height, pixels")]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Api(_Data):
    """Where the service is and how it wants to be spoken to."""

    base_url: Annotated[str, StringConstraints(pattern=r"^https?://[^/]+$")]
    submit_path: Annotated[str, StringConstraints(pattern=r"^/")]
    task_path: Annotated[str, StringConstraints(pattern=r"^/.*\{id\}")]
    idempotency_honoured: StrictBool
    modalities_shape: Literal["list", "string"]


class Limits(_Data):
    """Bounds of a request, and of what an answer may be."""

    prompt_min_chars: Count
    prompt_max_chars: Count
    image_urls_max: Annotated[StrictInt, Field(ge=0)]
    url_schemes: tuple[Text, ...]
    url_max_chars: Count
    samples_max: Count
    max_image_bytes: Count
    max_image_pixels: Count
    max_answer_bytes: Count
    size_tolerance: Annotated[float, Field(ge=0, lt=1)]


class Options(_Data):
    """The values that a request may choose among, and those it gets when it doesn't."""

    aspect_ratios: tuple[Annotated[str, StringConstraints(pattern=r"^\d+:\d+$")], ...] = Field(min_length=1)
    default_resolution: Text
    response_modalities: tuple[Text, ...] = Field(min_length=1)
    default_response_modalities: tuple[Text, ...] = Field(min_length=1)
    image_modality: Text


class Resolution(_Data):
    """One resolution tier: its output tokens an image, and the expected pixels by aspect ratio."""

    image_tokens: Count
    sizes: dict[str, Size]


class Estimates(_Data):
    """What a request is expected to use, where only the answer can tell."""

    input_image_tokens: Count
    prompt_tokens_per_char: Annotated[float, Field(gt=0)]
    reserve_text_tokens: Annotated[StrictInt, Field(ge=0)]
    typical_prompt_tokens_per_char: Annotated[float, Field(gt=0)]
    typical_text_tokens: Annotated[StrictInt, Field(ge=0)]
    latency_s: Annotated[tuple[float, float, float], Field(description="10th, 50th and 90th percentile, seconds")]


class Statuses(_Data):
    """The provider's words for the state of a task."""

    running: tuple[Text, ...]
    completed: tuple[Text, ...]
    failed: tuple[Text, ...]

    def state_of(self, word: str) -> TaskState:
        """The state that a status word means, in any case; a word nobody listed is `running` (keep polling)."""
        word = word.strip().lower()
        if word in self.completed:
            return "completed"
        return "failed" if word in self.failed else "running"


class SubmitRule(_Data):
    """What an HTTP status says of a submit; `kind` is None only when it was accepted."""

    outcome: Outcome
    kind: ErrorKind | None = None
    meaning: Text

    @model_validator(mode="after")
    def _kind_fits_outcome(self) -> Self:
        fits = {
            "accepted": self.kind is None,
            "refused": self.kind not in (None, ErrorKind.UNKNOWN_OUTCOME),
            "unknown": self.kind is ErrorKind.UNKNOWN_OUTCOME,
        }
        if not fits[self.outcome]:
            raise ValueError(f"outcome {self.outcome!r} does not go with kind {self.kind!r}")
        return self


_NOBODY_KNOWS = SubmitRule(outcome="unknown", kind=ErrorKind.UNKNOWN_OUTCOME, meaning="unexpected status")


class SubmitRules(_Data):
    """HTTP statuses of a submit."""

    statuses: dict[HttpStatus, SubmitRule]
    classes: dict[HttpClass, SubmitRule]

    def rule(self, status: int) -> SubmitRule:
        """The rule for an HTTP status: its own, else its class's, else unknown (it may have been billed)."""
        by_class = self.classes.get(f"{status // 100}xx", _NOBODY_KNOWS)
        return self.statuses.get(str(status), by_class)


class PollRules(_Data):
    """HTTP statuses of a poll."""

    default_kind: ErrorKind
    statuses: dict[HttpStatus, ErrorKind]

    def kind(self, status: int) -> ErrorKind:
        """The kind of a poll answered with a status that is not a success."""
        return self.statuses.get(str(status), self.default_kind)


class ErrorCode(_Data):
    """What a provider's error code means, and whether a task that failed with it is billed."""

    kind: ErrorKind
    billed: StrictBool
    meaning: Text


class MessageWords(_Data):
    """Words that give an error its kind when its code is not listed."""

    kind: ErrorKind
    words: tuple[Text, ...] = Field(min_length=1)


class Errors(_Data):
    """Error codes of tasks, by nine digits."""

    default: ErrorCode
    codes: dict[Code, ErrorCode]
    messages: tuple[MessageWords, ...] = ()


class PriceList(_Data):
    """Prices in USD, in force from `valid_from` to `valid_to` (UTC days, inclusive; None: until further notice)."""

    version: Text
    valid_from: date
    valid_to: date | None = None
    currency: Literal["USD"]
    source: Text
    input_per_million: Money
    text_output_per_million: Money
    image_output_per_million: Money
    image_per_resolution: dict[str, Money]

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.valid_to is not None and self.valid_to < self.valid_from:
            raise ValueError(f"valid_to {self.valid_to} is before valid_from {self.valid_from}")
        return self

    def covers(self, day: date) -> bool:
        """Whether the list is in force on a day."""
        return self.valid_from <= day and (self.valid_to is None or day <= self.valid_to)


class ModelSpec(_Data):
    """Everything known of one model."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    title: Text
    source: Text
    valid_from: date
    api: Api
    limits: Limits
    options: Options
    resolution_tiers: dict[str, Resolution] = Field(alias="resolutions", min_length=1)
    estimates: Estimates
    statuses: Statuses
    submit: SubmitRules
    poll: PollRules
    errors: Errors
    prices: tuple[PriceList, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        options, ratios = self.options, set(self.options.aspect_ratios)
        if options.default_resolution not in self.resolution_tiers:
            raise ValueError(f"default_resolution {options.default_resolution!r} is not among the resolutions")
        if not set(options.default_response_modalities) <= set(options.response_modalities):
            raise ValueError("default_response_modalities are not all among response_modalities")
        if options.image_modality not in options.response_modalities:
            raise ValueError(f"image_modality {options.image_modality!r} is not among response_modalities")
        for name, tier in self.resolution_tiers.items():
            if set(tier.sizes) != ratios:
                raise ValueError(f"sizes of {name} do not match the aspect ratios: {sorted(set(tier.sizes) ^ ratios)}")
        for prices in self.prices:
            if set(prices.image_per_resolution) != set(self.resolution_tiers):
                raise ValueError(
                    f"prices {prices.version!r}: image_per_resolution must price exactly {', '.join(self.resolutions)}"
                )
        in_order = sorted(self.prices, key=lambda prices: prices.valid_from)
        for earlier, later in pairwise(in_order):
            if earlier.covers(later.valid_from):
                raise ValueError(f"prices {earlier.version!r} and {later.version!r} are both in force on a same day")
        return self

    @property
    def aspect_ratios(self) -> tuple[str, ...]:
        """The aspect ratios a request may ask for."""
        return self.options.aspect_ratios

    @property
    def resolutions(self) -> tuple[str, ...]:
        """The resolutions a request may ask for, smallest first."""
        return tuple(self.resolution_tiers)

    @property
    def default_resolution(self) -> str:
        """The resolution of a request that names none."""
        return self.options.default_resolution

    @property
    def response_modalities(self) -> tuple[str, ...]:
        """The response modalities a request may ask for, in the provider's spelling."""
        return self.options.response_modalities

    @property
    def default_response_modalities(self) -> tuple[str, ...]:
        """The response modalities of a request that names none."""
        return self.options.default_response_modalities

    @property
    def idempotency_honoured(self) -> bool:
        """Whether the provider takes two submits with one Idempotency-Key for one task."""
        return self.api.idempotency_honoured

    def tier(self, resolution: str | None) -> Resolution:
        """The tier of a resolution (None: the default). Raises `UserError` when the model has no such resolution."""
        name = resolution or self.default_resolution
        if name not in self.resolution_tiers:
            raise UserError(f"{self.name} has no resolution {name!r}: choose one of {', '.join(self.resolutions)}")
        return self.resolution_tiers[name]

    def expected_size(self, aspect_ratio: str | None, resolution: str | None) -> tuple[int, int] | None:
        """Width and height to expect, in pixels; None when the request leaves the ratio to the model."""
        return self.tier(resolution).sizes.get(aspect_ratio) if aspect_ratio else None

    def image_tokens(self, resolution: str | None) -> int:
        """Output tokens of one image."""
        return self.tier(resolution).image_tokens

    def price_at(self, day: date) -> PriceList:
        """The price list in force on a UTC day. Raises `UserError` when there is none: what has no price is refused."""
        for prices in self.prices:
            if prices.covers(day):
                return prices
        raise UserError(
            f"no price for {self.name} on {day}: "
            "add a [[prices]] list that covers the day to your price file (NANOBANANA_PRICES)"
        )
