"""Who an item is and what it asks for: stable hashes, canonical requests, and names that are safe in a path.

Everything here is a pure function of its arguments and must give the same answer for ever: ledgers and file names of
past runs depend on it. Nothing here reads a catalogue or touches a disk.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import orjson

from nanobanana_pipeline.model_specs.spec import ModelSpec

_ID_HEX_DIGITS = 32
_NAME_HASH_DIGITS = 8

# One dot at a time: Dagster forbids "..." in a partition key, and "." and ".." are folders.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]|\.(?=\.)|(?<=\.)\.|^[.-]|\.\Z")
_LOOKS_HASHED = re.compile(rf"-[0-9a-f]{{{_NAME_HASH_DIGITS}}}\Z")


class Request(NamedTuple):
    """What one catalogue row asks of the model, as the row sets it: empty is the same as absent.

    A named tuple, since a catalogue makes a million of them, and a frozen dataclass takes three times as long to make.
    """

    model: str
    prompt: str
    image_urls: tuple[str, ...] = ()
    aspect_ratio: str | None = None
    resolution: str | None = None
    response_modalities: tuple[str, ...] | None = None

    def canonical(self, spec: ModelSpec) -> str:
        """The request as JSON with every default filled in: equal for two requests that mean the same."""
        return RequestHasher(spec).canonical(self).decode()

    def to_json(self) -> str:
        """The request as compact JSON, without what the row leaves open."""
        # Field by field: by their names in a row it takes twice as long, a million times over.
        model, prompt, image_urls, aspect_ratio, resolution, response_modalities = self
        given: dict[str, Any] = {"model": model, "prompt": prompt}
        if image_urls:
            given["image_urls"] = image_urls
        if aspect_ratio:
            given["aspect_ratio"] = aspect_ratio
        if resolution:
            given["resolution"] = resolution
        if response_modalities:
            given["response_modalities"] = response_modalities
        return orjson.dumps(given).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The request that `to_json` wrote."""
        fields = orjson.loads(text)
        modalities = fields.get("response_modalities")
        return cls(
            model=fields["model"],
            prompt=fields["prompt"],
            image_urls=tuple(fields.get("image_urls", ())),
            aspect_ratio=fields.get("aspect_ratio"),
            resolution=fields.get("resolution"),
            response_modalities=tuple(modalities) if modalities else None,
        )


class RequestHasher:
    """Hashes requests by one model spec: for many at a time."""

    def __init__(self, spec: ModelSpec) -> None:
        self._default_resolution = spec.default_resolution
        self._default_modalities = spec.default_response_modalities
        self._modalities: dict[tuple[str, ...] | None, list[str]] = {}

    def canonical(self, request: Request) -> bytes:
        """The canonical request, as `Request.canonical` gives it, in UTF-8."""
        modalities = request.response_modalities
        if modalities not in self._modalities:
            self._modalities[modalities] = sorted(set(modalities or self._default_modalities))
        # Written in key order, so that nothing has to be sorted a million times.
        return orjson.dumps(
            {
                "aspect_ratio": request.aspect_ratio or None,
                "image_urls": request.image_urls,
                "model": request.model,
                "prompt": request.prompt,
                "resolution": request.resolution or self._default_resolution,
                "response_modalities": self._modalities[modalities],
            }
        )

    def hashes(self, requests: Iterable[Request]) -> list[str]:
        """The hash of each request, as `request_hash` gives it."""
        canonical, sha256 = self.canonical, hashlib.sha256
        return [sha256(canonical(request)).hexdigest()[:_ID_HEX_DIGITS] for request in requests]


def request_hash(request: Request, spec: ModelSpec) -> str:
    """32 hex digits that are equal for two requests exactly when they ask the same of the model.

    The shape on the wire, campaign, labels and samples have no part in it.
    """
    return RequestHasher(spec).hashes([request])[0]


def item_id(catalogue: str, prompt_id: str, sample: int) -> str:
    """32 hex digits for one image wanted: sample number `sample` of a prompt of a catalogue."""
    return item_ids(catalogue, [(prompt_id, sample)])[0]


def item_ids(catalogue: str, wanted: Iterable[tuple[str, int]]) -> list[str]:
    """The `item_id` of each prompt id and sample of a catalogue."""
    sha256 = hashlib.sha256
    name = catalogue.encode("utf-8", "surrogatepass")
    # The length goes first, or ("a", "bc") and ("ab", "c") would be one item.
    start = b"%d:%b" % (len(name), name)
    ids: list[str] = []
    for prompt_id, sample in wanted:
        prompt = prompt_id.encode("utf-8", "surrogatepass")
        number = b"%d" % sample
        parts = b"%b%d:%b%d:%b" % (start, len(prompt), prompt, len(number), number)
        ids.append(sha256(parts).hexdigest()[:_ID_HEX_DIGITS])
    return ids


def safe_name(text: str, limit: int = 80) -> str:
    """`text` as a file name, at most `limit` ASCII characters; different texts give different names.

    A text that is safe already stays as it is. Any other gets `-` and eight hex digits of its hash at the end, and so
    does one that already ends like that, or it could be taken for another's.
    """
    safe = _UNSAFE.sub("_", text)
    if text == safe and 0 < len(text) <= limit and not _LOOKS_HASHED.search(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_NAME_HASH_DIGITS]
    return f"{safe[: limit - _NAME_HASH_DIGITS - 1] or '_'}-{digest}"
