"""Reads model specs, and a user's own price file, and checks them strictly.

What a spec may hold is in `spec`; nothing here knows a model's values.
"""

import tomllib
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanobanana_pipeline import model_specs
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.model_specs.spec import ModelSpec

__all__ = ["ModelSpec", "known_models", "load_spec"]

_FOLDER = files(model_specs)


def known_models() -> tuple[str, ...]:
    """Names of the models that have a spec."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in _FOLDER.iterdir() if f.name.endswith(".toml")))


def load_spec(name: str = "nano_banana_2", prices: Path | str | None = None) -> ModelSpec:
    """The spec of a model, with the price lists of `prices` (a TOML file) in place of its own when given.

    `name` is one of ours, or a file: a spec of your own. Raises `UserError` for an unknown model, and for a file that
    is missing, torn or wrong.
    """
    if name.endswith(".toml"):
        raw, spec = _own_spec(Path(name))
    elif name in known_models():
        raw, spec = _raw_spec(name), _spec(name)
    else:
        raise UserError(
            f"unknown model {name!r}: set NANOBANANA_MODEL to one of {', '.join(known_models())}, or to a spec of your "
            "own, a file whose name ends with .toml"
        )
    if prices is None:
        return spec
    own = _read_prices(Path(prices))
    try:
        return ModelSpec.model_validate({**raw, **own})
    except ValidationError as error:
        raise UserError(f"wrong price file {prices}: {_first_mistake(error)}; correct it and try again") from None


@cache
def _raw_spec(name: str) -> dict[str, Any]:
    return _parse(_FOLDER.joinpath(f"{name}.toml").read_text(encoding="utf-8"))


@cache
def _spec(name: str) -> ModelSpec:
    return ModelSpec.model_validate(_raw_spec(name))


def _own_spec(path: Path) -> tuple[dict[str, Any], ModelSpec]:
    raw = _read(path, "model spec", "NANOBANANA_MODEL")
    try:
        return raw, ModelSpec.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"wrong model spec {path}: {_first_mistake(error)}; correct it and try again") from None


def _parse(text: str) -> dict[str, Any]:
    # Decimal, so that 0.0672 dollars stays exactly that.
    return tomllib.loads(text, parse_float=Decimal)


def _read_prices(path: Path) -> dict[str, Any]:
    own = _read(path, "price file", "NANOBANANA_PRICES")
    if set(own) != {"prices"}:
        raise UserError(f"the price file {path} must hold [[prices]] lists and nothing else; it has {sorted(own)}")
    return own


def _read(path: Path, what: str, variable: str) -> dict[str, Any]:
    try:
        # With a mark at the beginning, as Windows' editors put it there.
        return _parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"can't read the {what} {path}: {error.strerror}; correct {variable}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} is not TOML: {error}; correct it and try again") from None


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
