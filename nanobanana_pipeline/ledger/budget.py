"""The cap: one counter row per scope, checked and changed in the transaction that makes the attempt.

The rule at every admission: reserved + spent + at risk + the new reservation <= cap, for every scope at once. A
settlement above its reservation is recorded as it is (the money is gone) and stops the next admission.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database
from nanobanana_pipeline.ledger.states import Holding

_budget = schema.budget


@dataclass(frozen=True, slots=True)
class Caps:
    """The most that may be spent, in micro-dollars; None is no cap on that scope."""

    day: int | None = None
    catalogue: int | None = None
    run: int | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a reservation did not fit."""

    scope: str
    cap: int
    held: Holding
    wanted: int

    @property
    def may_ease(self) -> bool:
        """Whether the open reservations could still free enough, by settling for less or being refused."""
        return self.held.reserved > 0 and self.held.spent + self.held.at_risk + self.wanted <= self.cap

    def __str__(self) -> str:
        kind, _, name = self.scope.partition(":")
        variable = {"day": "NANOBANANA_BUDGET_USD", "catalogue": "NANOBANANA_BUDGET_CATALOGUE_USD"}.get(
            kind, "NANOBANANA_BUDGET_RUN_USD or max_cost_usd"
        )
        held = self.held
        return (
            f"the {kind} cap of ${usd(self.cap)} ({variable}) has no room: {kind} {name} has spent ${usd(held.spent)}, "
            f"reserved ${usd(held.reserved)}, at risk ${usd(held.at_risk)}, and this needs ${usd(self.wanted)}"
        )


def usd(micros: int) -> str:
    """Micro-dollars as a decimal string with six places, exactly."""
    sign = "-" if micros < 0 else ""
    whole, part = divmod(abs(micros), 1_000_000)
    return f"{sign}{whole}.{part:06d}"


def scopes_of(day: str, catalogue: str, run_scope: str) -> tuple[str, str, str]:
    """The counters an attempt counts on."""
    return f"day:{day}", f"catalogue:{catalogue}", f"run:{run_scope}"


class Counters:
    """The counters of one transaction: read under lock when an admission needs them, written once at its end."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database = database
        self._connection = connection
        self._held: dict[str, Holding] = {}
        self._changes: defaultdict[str, Holding] = defaultdict(Holding)

    def change(self, scopes: Iterable[str], by: Holding) -> None:
        """Move money between an attempt's accounts."""
        if any(by):
            for scope in scopes:
                self._changes[scope] = _plus(self._changes[scope], by)

    def reserve(self, scopes: tuple[str, str, str], caps: Caps, amount: int) -> Shortage | None:
        """Reserve `amount` on all three scopes, or say which has no room and change nothing."""
        self._load(scopes)
        for scope, cap in zip(scopes, (caps.day, caps.catalogue, caps.run), strict=True):
            held = _plus(self._held[scope], self._changes[scope])
            if cap is not None and sum(held) + amount > cap:
                return Shortage(scope, cap, held, amount)
        self.change(scopes, Holding(reserved=amount))
        return None

    def flush(self) -> None:
        """Write the changes, in one order for every process (rows locked in different orders deadlock)."""
        rows = [{"scope": scope, **change._asdict()} for scope, change in sorted(self._changes.items()) if any(change)]
        if rows:
            insert = self._database.upsert(_budget)
            added = {name: _budget.c[name] + insert.excluded[name] for name in Holding._fields}
            self._connection.execute(insert.on_conflict_do_update(index_elements=["scope"], set_=added), rows)

    def _load(self, scopes: Iterable[str]) -> None:
        missing = sorted(set(scopes) - self._held.keys())
        if not missing:
            return
        # The rows must exist to be locked: two first admissions of a day would both read nothing and both fit.
        insert = self._database.upsert(_budget)
        zero = [{"scope": scope, "reserved": 0, "spent": 0, "at_risk": 0} for scope in missing]
        self._connection.execute(insert.on_conflict_do_nothing(), zero)
        query = self._database.lock_rows(
            sa.select(_budget).where(_budget.c.scope.in_(missing)).order_by(_budget.c.scope)
        )
        for row in self._connection.execute(query):
            self._held[row.scope] = Holding(row.reserved, row.spent, row.at_risk)


def _plus(one: Holding, other: Holding) -> Holding:
    return Holding(one.reserved + other.reserved, one.spent + other.spent, one.at_risk + other.at_risk)
