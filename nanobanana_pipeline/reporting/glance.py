"""Small tables and bars in markdown, for a look in passing: Dagster shows them where they stand while they are short.

Text suits its light and its dark theme alike, and weighs nothing in an event log that is kept for good.
"""

from collections.abc import Iterable, Sequence
from typing import Final

INLINE_CHARS: Final = 1_000
"""Markdown of this length or more waits behind a link in Dagster's pages."""

_BLOCKS: Final = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH: Final = 16
_CELL_CHARS: Final = 200
_MARKUP: Final = frozenset("\\`*_{}[]()<>#+!|&~$")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, names: int, title: str = "", rest: str = "") -> str:
    """A table with as many of the rows as fit, the others counted.

    The first `names` columns, and those without a header (bars), stand to the left, numbers to the right. `rest` says
    where the other rows are. Cells are texts as `cell` gives them.
    """
    listed = list(rows)
    rule = ["---" if i < names or not title_of else "---:" for i, title_of in enumerate(header)]
    lines = [*([title, ""] if title else []), _line(header), _line(rule)]
    room = INLINE_CHARS - sum(len(line) + 1 for line in lines)
    shown = 0
    for row in listed:
        line = _line(row)
        left = len(listed) - shown - 1
        if len(line) + 1 + (len(_more(left, rest)) + 2 if left else 0) >= room:
            break
        lines.append(line)
        room -= len(line) + 1
        shown += 1
    if shown < len(listed):
        lines += ["", _more(len(listed) - shown, rest)]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text for a cell of a markdown table: nothing in it can begin markup or end the cell."""
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in " ".join(text.split()))[:_CELL_CHARS]


def bar(value: int, highest: int) -> str:
    """A bar of block characters whose length is the value's share of the highest, to an eighth of a character."""
    if value <= 0 or highest <= 0:
        return ""
    # What is not nothing must be seen.
    eighths = max(1, round(value / highest * _BAR_WIDTH * 8))
    full, rest = divmod(eighths, 8)
    return _BLOCKS[8] * full + (_BLOCKS[rest] if rest else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _more(count: int, rest: str) -> str:
    return f"and {count:,} more{rest}"
