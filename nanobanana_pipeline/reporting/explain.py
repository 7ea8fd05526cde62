"""What happened, in sentences: to an item, in a run, on a day. From the ledger alone: no table or SQL is needed.

Here is found what a person means, and what a story looks like; the sentences are in `item_story` and `work_story`.
"""

import re
from datetime import date
from typing import Final

from sqlalchemy.engine import Connection

from nanobanana_pipeline.catalogue.identity import item_id
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import chronicle
from nanobanana_pipeline.ledger.chronicle import Work
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.reporting.item_story import tell_item
from nanobanana_pipeline.reporting.story import Story
from nanobanana_pipeline.reporting.work_story import tell_work

_SHORTEST: Final = 4
"""Characters of an id, at least: fewer are the beginning of too many."""
_SAMPLE: Final = re.compile(r"\d{1,9}", re.ASCII)
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


def explain(ledger: Ledger, text: str) -> Story:
    """The story of what `text` names, in one snapshot of the ledger.

    That is a UTC day (YYYY-MM-DD); an item by `catalogue/prompt_id` or `catalogue/prompt_id#sample`, or by the
    beginning of its id or an attempt's, or a task's whole id; a run by the beginning of its id. Raises `UserError` when
    it names nothing, or several things.
    """
    text = text.strip()
    with ledger.database.read() as connection:
        now = ledger.database.now(connection)
        if _DAY.fullmatch(text):
            return tell_work(connection, Work(day=_real_day(text)), now)
        named = _item_named(connection, text)
        if named is not None:
            return tell_item(connection, named, now)
        if len(text) < _SHORTEST:
            raise UserError(f"{text!r} is too short for an id: give {_SHORTEST} characters of it, or more")
        items = chronicle.items_that_begin(connection, text)
        runs = chronicle.runs_that_begin(connection, text)
        if text in runs:
            runs, items = [text], []
        if len(items) + len(runs) > 1:
            found = ", ".join([*(f"item {item}" for item in items), *(f"run {run}" for run in runs)])
            raise UserError(f"{text!r} is the beginning of several: {found}; give more of it")
        if items:
            return tell_item(connection, items[0], now)
        if runs:
            return tell_work(connection, Work(run=runs[0]), now)
    raise UserError(
        f"the ledger {ledger.database.place} knows no item, attempt, task or run {text!r}; an item is named "
        "catalogue/prompt_id#sample, a day YYYY-MM-DD, and a run that made no attempt has left nothing to explain"
    )


def _item_named(connection: Connection, text: str) -> str | None:
    """The item that `catalogue/prompt_id#sample` names; any string is a valid prompt_id, `#2` at its end too."""
    catalogue, slash, prompt_id = text.partition("/")
    if not slash:
        return None
    whole, _, sample = prompt_id.rpartition("#")
    names = [(prompt_id, 1), *([(whole, int(sample))] if _SAMPLE.fullmatch(sample) and whole else [])]
    for name, number in names:
        found = item_id(catalogue, name, number)
        if chronicle.item(connection, found) is not None:
            return found
    raise UserError(
        f"catalogue {catalogue} has no item {prompt_id!r} in the ledger: `nanobanana query` lists those that there are "
        "(table prompts), and rows that were rejected, with the reason (rejected_prompts)"
    )


def _real_day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"{text} is no day of the calendar: write it as YYYY-MM-DD") from None
