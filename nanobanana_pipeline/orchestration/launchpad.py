"""What a person can set in the launchpad for a run of generation, with its bounds, defaults and help.

The bounds are checked when a run is asked for: Dagster checks those of its own Pydantic configs only once the run has
started, when a mistyped number has already made a failed run.
"""

from collections.abc import Mapping
from decimal import Decimal
from types import UnionType
from typing import Any, Final, Self, get_args, get_origin

import dagster as dg
from dagster._config import PostProcessingError
from dagster._config.config_type import ConfigScalar, Float, Int
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from nanobanana_pipeline.ledger.work import Rerun


class GenerationConfig(BaseModel):
    """What one run of a shard may do beyond making the images that are missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int | None = Field(
        default=None,
        ge=0,
        le=10_000_000,
        description="Begin at most this many new images in this shard: a pilot. The next run goes on with the rest, "
        "and pays for nothing twice. 0: only finish what is under way. Empty: no limit.",
    )
    retry_failed: bool = Field(
        default=False,
        description="Try failed items again, once each, at their usual price. A failed attempt is mostly not billed.",
    )
    resubmit_unknown: bool = Field(
        default=False,
        description="Send again, once each, what was sent without an answer. The lost ones may have been billed: "
        "this may pay for them twice. See the check `no_unknown_outcomes` first.",
    )
    regenerate: bool = Field(
        default=False,
        description="Make every image of the shard anew, once, and pay for each again. Re-executing the run repeats "
        "nothing.",
    )
    items: str = Field(
        default="",
        description="Begin only these items, by their item_id with spaces between (see the table `results`); with "
        "regenerate, make these anew and no others. Empty: all of the shard.",
    )
    allow_duplicates: bool = Field(
        default=False,
        description="Go on although most of the catalogue has images under another catalogue's name, as after a file "
        "was renamed. It pays for them again.",
    )
    max_cost_usd: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Spend at most this many US dollars in this run (in a backfill: over all of its runs). What "
        "doesn't fit is deferred. Empty: NANOBANANA_BUDGET_RUN_USD.",
    )

    @classmethod
    def of(cls, op_config: Mapping[str, Any]) -> Self:
        """The config of a running operation."""
        return cls.model_validate(dict(op_config))

    @property
    def rerun(self) -> Rerun | None:
        """What is to be paid for again."""
        return Rerun.of(regenerate=self.regenerate, retry_failed=self.retry_failed)

    @property
    def chosen_items(self) -> tuple[str, ...]:
        """The items that may be begun; none is all of them."""
        return tuple(self.items.split())

    @property
    def max_cost_micros(self) -> int | None:
        """`max_cost_usd` in micro-dollars, exact to the digits that were typed."""
        return None if self.max_cost_usd is None else int(Decimal(str(self.max_cost_usd)).scaleb(6))


def config_schema(model: type[BaseModel]) -> dict[str, dg.Field]:
    """The Dagster config schema of a Pydantic model of flags, texts and (optional) numbers."""
    return {name: _config_field(field) for name, field in model.model_fields.items()}


def _config_field(field: FieldInfo) -> dg.Field:
    kind, optional = _kind_of(field.annotation)
    scalar = kind if kind in {bool, str} else _SCALARS[kind](field)
    return dg.Field(
        dg.Noneable(scalar) if optional else scalar,
        is_required=False,
        default_value=field.default,
        description=field.description,
    )


def _kind_of(annotation: Any) -> tuple[type, bool]:
    if get_origin(annotation) is not UnionType:
        return annotation, False
    kind, _none = get_args(annotation)
    return kind, True


class _Bounded(ConfigScalar):
    """Refuses, when a run is asked for, what the Pydantic field would refuse when it runs."""

    def __init__(self, field: FieldInfo) -> None:
        super().__init__()  # pyright: ignore[reportCallIssue] (of Int or Float, which come next in line)
        self._adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())

    def post_process(self, value: Any) -> Any:
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            raise PostProcessingError(f"{value}: {error.errors()[0]['msg']}") from None


class _BoundedInt(_Bounded, Int):
    pass


class _BoundedFloat(_Bounded, Float):
    pass


_SCALARS: Final[dict[type, type[_Bounded]]] = {int: _BoundedInt, float: _BoundedFloat}
