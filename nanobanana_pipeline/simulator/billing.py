"""The provider's side of the money: what a task used, what that costs, and the book it is written in.

The arithmetic is the simulator's own, in exact decimals straight from the price list. It must not become a call of the
pipeline's pricing: this book is what that pricing is held against.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import orjson

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.model_specs.spec import ModelSpec

_MICRO = Decimal("0.000001")
_MILLION = Decimal(1_000_000)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenUse:
    """Tokens of one task, by what they are priced as."""

    prompt_tokens: int
    image_tokens: int
    text_tokens: int

    def as_usage(self) -> dict[str, int]:
        """The three counts that the wire shows; there, image and text tokens are one sum."""
        completion = self.image_tokens + self.text_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


def price(spec: ModelSpec, *, resolution: str, images: int, use: TokenUse, day: date) -> Decimal:
    """US dollars for one task: images by tier, text and prompt by the token; rounded once, half up, to 0.000001."""
    prices = spec.price_at(day)
    exact = (
        images * prices.image_per_resolution[resolution]
        + use.text_tokens * prices.text_output_per_million / _MILLION
        + use.prompt_tokens * prices.input_per_million / _MILLION
    )
    return exact.quantize(_MICRO, rounding=ROUND_HALF_UP)


def as_money(text: str | Decimal | float) -> Decimal:
    """An amount in US dollars, to the micro-dollar."""
    return Decimal(str(text)).quantize(_MICRO, rounding=ROUND_HALF_UP)


def as_time(seconds: float) -> str:
    """A moment as the book writes it: UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_seconds(text: str) -> float:
    """The moment that `as_time` wrote, in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def key_fingerprint(key: str) -> str:
    """Twelve hex digits that tell keys apart without telling the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


class Book:
    """A file of JSON lines, appended to as things happen and never changed.

    A row is handed to the operating system before the answer that it records may leave, so it survives the simulator's
    own death; with `fsync` it survives the machine's too.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self.path = path
        self._fsync = fsync
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"can't write the simulator's book {path}: {error.strerror}; choose another with --book"
            ) from error
        self._end_torn_line()

    def append(self, row: Row) -> None:
        """Write a row."""
        line = memoryview(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        while line:
            line = line[os.write(self._file, line) :]
        if self._fsync:
            os.fsync(self._file)

    def rows(self) -> list[Row]:
        """Every row, oldest first."""
        return list(read_book(self.path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _end_torn_line(self) -> None:
        # A machine that died in the middle of a write leaves half a line, which the next row must not be glued to.
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")


def read_book(path: Path) -> Iterator[Row]:
    """The rows of a book, without those that were torn by a crash."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row
