"""Amounts of money as they are typed behind an option."""

from decimal import Decimal, InvalidOperation
from typing import Any

import click
from typing_extensions import override

MOST = Decimal(1_000_000)


class Dollars(click.ParamType[Decimal]):
    """So many US dollars, from `least` on; what is no such amount is said in a line."""

    name = "usd"

    def __init__(self, *, least: str) -> None:
        self._least = Decimal(least)

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Read it."""
        try:
            amount = Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is no amount: write dollars as in 2.50", param, ctx)
        if not amount.is_finite() or not self._least <= amount <= MOST:
            self.fail(f"{value} is not between {self._least:f} and {MOST:,} dollars", param, ctx)
        return amount
