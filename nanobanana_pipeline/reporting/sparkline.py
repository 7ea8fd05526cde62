"""A chart that fits where only text goes: bars drawn with block characters, in a markdown table.

Dagster shows metadata in its light and dark theme alike, and keeps it for good: text suits both and weighs nothing.
"""

from collections.abc import Mapping
from typing import Final

_BLOCKS: Final = " ▏▎▍▌▋▊▉█"
_WIDTH: Final = 24


def bars_markdown(values: Mapping[str, int]) -> list[str]:
    """A markdown table of days (or other names) and their micro-dollars, each with a bar; [] without values."""
    if not values:
        return []
    highest = max(values.values())
    lines = ["| day | cost | |", "| --- | ---: | --- |"]
    lines += [f"| {name} | ${micros / 1e6:,.2f} | {bar(micros, highest)} |" for name, micros in values.items()]
    return lines


def bar(value: int, highest: int) -> str:
    """A bar whose length is the value's share of the highest, to an eighth of a character."""
    if value <= 0 or highest <= 0:
        return ""
    # What is not nothing must be seen.
    eighths = max(1, round(value / highest * _WIDTH * 8))
    full, rest = divmod(eighths, 8)
    return _BLOCKS[8] * full + (_BLOCKS[rest] if rest else "")
