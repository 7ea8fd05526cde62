"""What the provider makes of a submit's body: the checks that come before it accepts a task.

Written against the wire's description alone, apart from the client's own validation and serialisation: if both shared a
mistake, no test could see it.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import orjson

from nanobanana_pipeline.model_specs.spec import ModelSpec

MAX_BODY_BYTES = 1_000_000


class RefusedRequestError(Exception):
    """A submit that the provider turns down: HTTP status and message for the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request that passed, with the provider's defaults filled in (`aspect_ratio` None: the model chooses)."""

    model: str
    prompt: str
    image_urls: tuple[str, ...]
    aspect_ratio: str | None
    resolution: str
    response_modalities: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """32 hex digits over all that was asked for; the provider's own, not the client's request hash."""
        asked = [
            self.model,
            self.prompt,
            self.image_urls,
            self.aspect_ratio,
            self.resolution,
            sorted(self.response_modalities),
        ]
        return hashlib.sha256(orjson.dumps(asked)).hexdigest()[:32]


def read_request(body: bytes, spec: ModelSpec) -> GenerationRequest:
    """The request in a submit's body. Raises `RefusedRequestError` saying what is wrong; unknown fields are ignored."""
    if len(body) > MAX_BODY_BYTES:
        raise RefusedRequestError(413, "request body too large")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedRequestError(400, "request body is not valid JSON") from error
    fields = _object(document, "the request body")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedRequestError(400, "model is required")
    if model != spec.name:
        raise RefusedRequestError(404, f"model {model!r} not found")
    params = _params(fields.get("input"))
    return GenerationRequest(
        model=model,
        prompt=_prompt(params, spec),
        image_urls=_image_urls(params, spec),
        aspect_ratio=_choice(params, "aspect_ratio", spec.aspect_ratios),
        resolution=_choice(params, "resolution", spec.resolutions) or spec.default_resolution,
        response_modalities=_modalities(params, spec),
    )


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RefusedRequestError(400, f"{name} must be an object")
    return cast("dict[str, Any]", value)


def _params(blocks: Any) -> dict[str, Any]:
    if not isinstance(blocks, list) or len(cast("list[Any]", blocks)) != 1:
        raise RefusedRequestError(400, "input must be a list of one object")
    return _object(_object(blocks[0], "input[0]").get("params"), "input[0].params")


def _prompt(params: dict[str, Any], spec: ModelSpec) -> str:
    prompt = params.get("prompt")
    if not isinstance(prompt, str):
        raise RefusedRequestError(400, "prompt is required and must be a string")
    shortest, longest = spec.limits.prompt_min_chars, spec.limits.prompt_max_chars
    if not shortest <= len(prompt) <= longest:
        raise RefusedRequestError(400, f"prompt must have {shortest} to {longest} characters, not {len(prompt)}")
    return prompt


def _image_urls(params: dict[str, Any], spec: ModelSpec) -> tuple[str, ...]:
    if "image_urls" not in params:
        return ()
    urls = params["image_urls"]
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in cast("list[Any]", urls)):
        raise RefusedRequestError(400, "image_urls must be a list of strings")
    texts = tuple(cast("list[str]", urls))
    if len(texts) > spec.limits.image_urls_max:
        raise RefusedRequestError(
            400, f"image_urls must have at most {spec.limits.image_urls_max} entries, not {len(texts)}"
        )
    for text in texts:
        if not _is_web_address(text, spec):
            raise RefusedRequestError(400, f"image_urls has an entry that is not a usable URL: {text[:100]!r}")
    return texts


def _is_web_address(text: str, spec: ModelSpec) -> bool:
    if len(text) > spec.limits.url_max_chars:
        return False
    try:
        url = urlsplit(text)
        return url.scheme.lower() in spec.limits.url_schemes and bool(url.hostname)
    except ValueError:
        return False


def _choice(params: dict[str, Any], name: str, allowed: tuple[str, ...]) -> str | None:
    if name not in params:
        return None
    value = params[name]
    if value not in allowed:
        raise RefusedRequestError(400, f"{name} must be one of {', '.join(allowed)}")
    return cast("str", value)


def _modalities(params: dict[str, Any], spec: ModelSpec) -> tuple[str, ...]:
    """A list, or a bare string: the provider's page types it as the one and shows the other."""
    if "response_modalities" not in params:
        return spec.default_response_modalities
    given = params["response_modalities"]
    values = cast("list[Any]", given) if isinstance(given, list) else [given]
    if not values or any(value not in spec.response_modalities for value in values):
        raise RefusedRequestError(400, f"response_modalities must be among {', '.join(spec.response_modalities)}")
    return tuple(dict.fromkeys(cast("list[str]", values)))
