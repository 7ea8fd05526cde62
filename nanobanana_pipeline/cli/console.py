"""How commands speak: results on standard output, everything else on standard error, money and sizes in one form."""

import json
import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import click

_DOLLAR: Final = 1_000_000

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey. Prompts, their names and the provider's words are strangers'."""

NEEDS_ATTENTION: Final = 3
"""Exit code: finished, but some item is failed, unknown, deferred or in flight elsewhere, or something differs."""


def say(text: str = "") -> None:
    """A line of the result."""
    click.echo(_harmless(text))


def note(text: str) -> None:
    """A line about what is going on, for people; never part of the result."""
    _tell(_harmless(text))


def warn(text: str) -> None:
    """One line that a person should not miss."""
    _tell(f"{click.style('warning:', fg='yellow', bold=True)} {_harmless(text)}")


def complain(text: str) -> None:
    """The one line that says why a command could not do its work."""
    _tell(f"{click.style('nanobanana:', fg='red', bold=True)} {_harmless(' '.join(text.split()))}")


@contextmanager
def told_above(write: Callable[[str], None]) -> Generator[None]:
    """Have everything but results written by whoever draws on the terminal meanwhile."""
    _writers.append(write)
    try:
        yield
    finally:
        _writers.remove(write)


_writers: Final[list[Callable[[str], None]]] = [lambda text: click.echo(text, err=True)]


def _tell(text: str) -> None:
    # A terminal that was closed takes no more, and what is going on must not end because nobody can be told.
    with suppress(OSError):
        _writers[-1](text)


def _harmless(text: str) -> str:
    return _CONTROLS.sub(" ", text)


def say_json(value: Mapping[str, Any]) -> None:
    """One JSON object, on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def dollars(micros: int) -> str:
    """Micro-dollars as people read them: cents, and more digits only for small sums."""
    digits = 2 if abs(micros) >= _DOLLAR or micros == 0 else 4
    return f"${micros / _DOLLAR:,.{digits}f}"


def usd_text(micros: int) -> str:
    """Micro-dollars for scripts: dollars with six places, exactly."""
    from nanobanana_pipeline.ledger import budget

    return budget.usd(micros)


def size(count: int) -> str:
    """Bytes as people read them: 812 kB, 3.4 GB."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return (
                f"{count / 1000**power:.1f} {unit}"
                if count < 10 * 1000**power
                else f"{count / 1000**power:,.0f} {unit}"
            )
    return f"{count} bytes"


def counted(count: int, thing: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def clock(seconds: float) -> str:
    """A duration as people read it: 42 s, 3:07 min, 2:05 h."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004 - minutes in an hour
        return f"{minutes}:{seconds:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


def on_terminal() -> bool:
    """Whether a person watches standard error."""
    return sys.stderr.isatty()
