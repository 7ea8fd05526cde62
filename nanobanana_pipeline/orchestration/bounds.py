"""Dagster config whose bounds hold when a run is asked for, in the launchpad as in a backfill's dialogue.

Dagster knows the types of its Pydantic configs and resources beforehand, but checks their bounds only once the run has
started, when a mistyped number has already made a failed run. What may be configured, and how far, is the models' to
say; here their fields become config fields that refuse by themselves.
"""

from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, Self, get_args, get_origin

import dagster as dg
from dagster._config import PostProcessingError
from dagster._config.config_type import Bool, ConfigType, Float, Int, String
from dagster._config.source import IntSourceType, StringSource, StringSourceType
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo


def config_fields(model: type[BaseModel]) -> dict[str, dg.Field]:
    """The Dagster config fields of a Pydantic model, none of them required."""
    return {
        name: _config_field(field, _bounded(name, field, field, _BY_VALUE), _default_of(field))
        for name, field in model.model_fields.items()
    }


def resource_fields(
    model: type[BaseModel], made_with: Mapping[str, Any], *, bounds: type[BaseModel], secrets: Collection[str]
) -> dict[str, dg.Field]:
    """Those of a resource, whose values `bounds` has the last word on, by its fields of the same names.

    As in any resource of Dagster's, the name of an environment variable will do as well; for `secrets`, nothing else.
    `made_with` are the resource's own values, which hold until a person types another. To Dagster they are one default,
    which goes as a whole: whoever typed one field alone would have set the budget back, and lost the key.
    """
    return {
        name: _config_field(
            field,
            _SecretByName() if name in secrets else _bounded(name, field, bounds.model_fields[name], _BY_VALUE_OR_NAME),
            made_with.get(name, _default_of(field)),
        )
        for name, field in model.model_fields.items()
    }


def _config_field(field: FieldInfo, kind: ConfigType, default: Any) -> dg.Field:
    return dg.Field(
        dg.Noneable(kind) if NoneType in get_args(field.annotation) else kind,
        is_required=False,
        description=field.description,
        default_value=default,
    )


def _default_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _bounded(name: str, field: FieldInfo, bounds: FieldInfo, scalars: "Mapping[type, type[_Bounded]]") -> ConfigType:
    kind: Any = field.annotation
    if get_origin(kind) is UnionType:
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Literal:
        return dg.Enum(str(kind), [dg.EnumValue(choice) for choice in get_args(kind)])
    if get_origin(kind) is list:
        return dg.Array(StringSource)
    return scalars[kind](name, TypeAdapter(bounds.rebuild_annotation()))


class _Bounded(ConfigType):
    """Refuses, when a run is asked for, what the Pydantic field would refuse when it runs."""

    def __init__(self, name: str, bounds: TypeAdapter[Any]) -> None:
        super().__init__()  # pyright: ignore[reportCallIssue] (of the type that comes next in line)
        # Dagster takes types of one key for the same, and wants names of their own for those that have a name.
        self.key = f"{type(self).__name__}.{name}"
        self.given_name = self.given_name and f"{self.given_name.removeprefix('_Bounded')} ({name})"
        self._name = name
        self._bounds = bounds

    def post_process(self, value: Any) -> Any:
        processed = super().post_process(value)
        try:
            self._bounds.validate_python(processed)
        except ValidationError as error:
            # Without the value, which may be the environment's: Dagster repeats what was typed.
            raise PostProcessingError(f"{self._name}: {error.errors()[0]['msg']}") from None
        return processed


class _BoundedBool(_Bounded, Bool):
    pass


class _BoundedInt(_Bounded, Int):
    pass


class _BoundedFloat(_Bounded, Float):
    pass


class _BoundedString(_Bounded, String):
    pass


class _BoundedIntSource(_Bounded, IntSourceType):
    pass


class _BoundedStringSource(_Bounded, StringSourceType):
    pass


class _SecretByName(dg.Selector):
    """A secret, by the name of its environment variable: its value would stand in the run's config for good."""

    def __new__(cls) -> Self:
        # Dagster's own hands out one selector for all that have the same fields, and none of another class.
        made = object.__new__(cls)
        made._initialized = False
        return made

    def __init__(self) -> None:
        super().__init__({"env": dg.Field(str, description="The name of the environment variable that holds it.")})

    def post_process(self, value: Any) -> Any:
        return StringSource.post_process(value)


_BY_VALUE: Final[Mapping[type, type[_Bounded]]] = {
    bool: _BoundedBool,
    int: _BoundedInt,
    float: _BoundedFloat,
    str: _BoundedString,
}
_BY_VALUE_OR_NAME: Final = {**_BY_VALUE, int: _BoundedIntSource, str: _BoundedStringSource}
