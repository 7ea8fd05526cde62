"""Every change to items, attempts and money, in one place.

A `Postings` is the write side of one transaction; `writer.GroupCommit` runs many workers' postings in it. The rules
that keep money safe are here and nowhere else: an attempt's row and its reservation are made together, before anything
is sent; a state changes only along `states.MOVES`; money follows the state.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.budget import Caps, Counters, scopes_of
from nanobanana_pipeline.ledger.changes import count_change
from nanobanana_pipeline.ledger.database import Database
from nanobanana_pipeline.ledger.entries import (
    AdmissionRequest,
    Attempt,
    Blocked,
    BlockedBy,
    Candidate,
    InFlight,
    Stale,
    Worker,
)
from nanobanana_pipeline.ledger.kept_images import has_image
from nanobanana_pipeline.ledger.states import (
    IN_FLIGHT_STATES,
    ITEM_STATE_OF,
    MOVES,
    OPEN_STATES,
    AttemptState,
    Holding,
    ItemState,
    holding,
)

_items = schema.items
_attempts = schema.attempts
_leases = schema.leases
_throttle = schema.throttle

Verdict = Attempt | Stale | Blocked


class Gate(Protocol):
    """How many requests the provider can be sent now; state is shared by all runs through the ledger, as text."""

    account: str

    def grant(self, state: str | None, now_ms: int, in_flight: InFlight, wanted: int, /) -> tuple[int, float]:
        """How many of `wanted` may go now, and after how many seconds to ask for the rest."""
        ...

    def take(self, state: str | None, now_ms: int, taken: int, /) -> str | None:
        """The state after `taken` were sent."""
        ...


class DoubtError(Exception):
    """Of the moves that were gathered, some are no longer to be made: the transaction is to be done one by one."""


class Postings:
    """The write side of one transaction of the ledger.

    With `gather`, moves are believed at first and written together, as a statement costs many times what a row does.
    Should the book then say otherwise of one of them, `DoubtError` undoes all of it.
    """

    def __init__(self, database: Database, connection: Connection, *, gather: bool = False) -> None:
        self._database = database
        self._connection = connection
        self._gather = gather
        self._gathered: dict[sa.Update, list[dict[str, Any]]] = {}
        self._item_changes: dict[sa.Update, list[dict[str, Any]]] = {}
        self._counters = Counters(database, connection)
        self._changed: list[tuple[Attempt, dict[str, Any]]] = []
        self.now = database.now(connection)

    @property
    def connection(self) -> Connection:
        """The transaction, with all that was posted before."""
        self._write_gathered()
        return self._connection

    def finish(self) -> None:
        """Write what is gathered until the end of the transaction. Raises `DoubtError`."""
        self._write_gathered()
        self._counters.flush()
        count_change(self._database, self._connection)

    def forget(self) -> None:
        """Give the attempts back what they were before, as the transaction has not taken place.

        It is made again, perhaps without the posting that spoilt it, and has to find them as it found them first.
        """
        for attempt, before in reversed(self._changed):
            for name, value in before.items():
                setattr(attempt, name, value)
        self._changed.clear()

    # --- admission ---------------------------------------------------------------------------------------------------

    def admit(self, wanted: Sequence[AdmissionRequest], worker: Worker, caps: Caps, gate: Gate) -> list[Verdict]:
        """Make an attempt (state `submitting`, money reserved) for as many of `wanted` as may be sent right now.

        Returns a verdict for each, in order. Whoever gets an `Attempt` must send it at once: should this process die
        first, the attempt counts as a submit of unknown outcome.
        """
        throttle = self._locked_throttle(gate.account)
        in_flight, waited = self._in_flight(gate.account, worker.owner)
        granted, wait_s = gate.grant(throttle, self.now, in_flight, len(wanted))
        admission = _Admission(self.now)
        known = self._locked_items(wanted) if granted else {}
        verdicts: list[Verdict] = []
        for request in wanted:
            if admission.size >= granted:
                verdicts.append(Blocked(BlockedBy.RATE, wait_s))
            else:
                # Taken out: of two that want the same item, the second comes too late.
                row = known.pop(request.candidate.item_id, None)
                verdicts.append(self._admit_one(request, row, worker, caps, admission))
        if admission.claims:
            self.connection.execute(_CLAIM, admission.claims)
        if admission.rows:
            self.connection.execute(_INSERT, admission.rows)
        after = gate.take(throttle, self.now, admission.size)
        if after != throttle:
            self._save_throttle(gate.account, after)
        waits = any(isinstance(verdict, Blocked) and verdict.by is BlockedBy.RATE for verdict in verdicts)
        if waits != waited:
            self.connection.execute(_WAITS, {"b_owner": worker.owner, "b_waits": waits})
        return verdicts

    def teach(self, account: str, lesson: Callable[[str | None, int], str]) -> None:
        """Change what is known of the provider's limits: `lesson(state, now_ms)` gives the new state."""
        self._save_throttle(account, lesson(self._locked_throttle(account), self.now))

    def _locked_items(self, wanted: Sequence[AdmissionRequest]) -> dict[str, Any]:
        """The items as the book has them now, held until the end; in one order, as opposite ones would deadlock."""
        ids = sorted(request.candidate.item_id for request in wanted)
        rows = self.connection.execute(self._database.lock_rows(_ITEMS), {"b_items": ids})
        return {row.item_id: row for row in rows}

    def _admit_one(
        self, request: AdmissionRequest, row: Any, worker: Worker, caps: Caps, admission: "_Admission"
    ) -> Verdict:
        candidate, again = request.candidate, request.again
        seen = (
            again.attempt if again else candidate.attempts,
            candidate.request_hash,
            candidate.state_if_refused if again else candidate.state,
            True,
        )
        if row is None or (row.attempts, row.request_hash, row.state, bool(row.active)) != seen:
            return Stale()
        scopes = scopes_of(admission.day, candidate.catalogue, worker.run_scope)
        shortage = self._counters.reserve(scopes, caps, request.reserve_micros)
        if shortage is not None:
            return Blocked(BlockedBy.BUDGET, shortage=shortage)
        if again is not None:
            attempt = self._submit_again(again, request.reserve_micros, worker, admission.day)
        else:
            attempt = _first_submit(candidate, request.reserve_micros, worker, admission)
        admission.claim(attempt)
        return attempt

    def _submit_again(self, attempt: Attempt, reserve_micros: int, worker: Worker, day: str) -> Attempt:
        # A refused attempt holds no money, so the day of its reservation may still be today's.
        self._change(attempt, day=day, reserved_micros=reserve_micros, run_scope=worker.run_scope)
        facts = {
            "day": day,
            "reserved_micros": reserve_micros,
            "submits": attempt.submits + 1,
            "closed_at": None,
            "error_kind": None,
            "error_code": None,
            "error_message": None,
        }
        if not self._update(attempt, AttemptState.REFUSED, AttemptState.SUBMITTING, facts):
            raise AssertionError(f"attempt {attempt.attempt_id} was claimed, and yet is not refused")
        self._change(attempt, state=AttemptState.SUBMITTING, submits=attempt.submits + 1)
        return attempt

    def _in_flight(self, account: str, owner: str) -> tuple[InFlight, bool]:
        """What the account has open now, and whether this worker was waiting for room when it asked last."""
        row = self.connection.execute(_IN_FLIGHT, {"b_now": self.now, "b_account": account, "b_owner": owner}).one()
        return InFlight(row.total, row.mine, row.others_waiting), bool(row.waited)

    def _locked_throttle(self, account: str) -> str | None:
        """The account's throttle, held until the end of the transaction: whoever counts next sees what was admitted.

        Without a row nothing is held, and on PostgreSQL hosts would count side by side and fill the same room twice.
        """
        query = self._database.lock_rows(sa.select(_throttle.c.state).where(_throttle.c.account == account))
        found = self.connection.execute(query).scalar_one_or_none()
        if found is None:
            fresh = self._database.upsert(_throttle).values(account=account, state="")
            self.connection.execute(fresh.on_conflict_do_nothing())
            found = self.connection.execute(query).scalar_one()
        return found or None

    def _save_throttle(self, account: str, state: str | None) -> None:
        insert = self._database.upsert(_throttle).values(account=account, state=state)
        self.connection.execute(
            insert.on_conflict_do_update(index_elements=["account"], set_={"state": insert.excluded.state})
        )

    # --- moves -------------------------------------------------------------------------------------------------------

    def move(
        self,
        attempt: Attempt,
        to: AttemptState,
        *,
        then: ItemState | None = None,
        note: str | None = None,
        **facts: Any,
    ) -> bool:
        """Move an attempt to state `to`, with its money and its item, and record `facts` (columns of `attempts`).

        `then` is the item's state afterwards, where it is not the usual one. An item edited meanwhile turns pending
        when its attempt closes: the new request has not been tried. One that has an image of its request already keeps
        it: edited back meanwhile, or when nothing came of a further attempt. Returns False, changing nothing, when the
        book says that the move is no longer to be made (another worker has settled the attempt).
        """
        if to in _CLOSED:
            facts.setdefault("closed_at", self.now)
        cost = facts.get("cost_micros", attempt.cost_micros)
        after = holding(to, attempt.reserved_micros, cost)
        facts["at_risk_micros"] = after.at_risk
        before = attempt.state
        if self._gather and to in MOVES[before]:
            self._gathered.setdefault(_transition(tuple(sorted(facts))), []).append(
                _transition_of(attempt, before, to, facts)
            )
        elif not self._update(attempt, before, to, facts):
            actual = self._reread(attempt)
            if actual is None or to not in MOVES[actual]:
                return False
            # A late answer to an attempt that was taken over meanwhile: it goes on from where the book has it.
            before = actual
            if not self._update(attempt, before, to, facts):
                return False
        elif to not in MOVES[before]:
            raise AssertionError(f"attempt {attempt.attempt_id} can't go from {before} to {to}")
        held = holding(before, attempt.reserved_micros, attempt.cost_micros)
        scopes = scopes_of(attempt.day, attempt.catalogue, attempt.run_scope)
        self._counters.change(scopes, after.minus(held))
        self._change(attempt, state=to, **{name: value for name, value in facts.items() if name in _MIRRORED})
        self._set_item(attempt, before, then, note)
        return True

    def correct(
        self, attempt_id: str, cost_micros: int, cost_source: str, price_version: str | None = None
    ) -> str | None:
        """Enter what a closed attempt did cost after all, by an invoice or other prices; returns its shard.

        An abandoned attempt is then at risk no longer. None, with nothing changed, for an attempt that was refused or
        is still open (its own answer will settle it), and when it is in the book like that already.
        """
        query = sa.select(_attempts).where(_attempts.c.attempt_id == attempt_id)
        row = self.connection.execute(self._database.lock_rows(query)).one_or_none()
        if row is None or AttemptState(row.state) not in _CORRECTABLE:
            return None
        version = price_version or row.price_version
        facts = (cost_micros, 0, cost_source, version)
        if (row.cost_micros, row.at_risk_micros, row.cost_source, row.price_version) == facts:
            return None
        self.connection.execute(
            _attempts.update()
            .where(_attempts.c.attempt_id == attempt_id)
            .values(cost_micros=cost_micros, at_risk_micros=0, cost_source=cost_source, price_version=version)
        )
        change = Holding(spent=cost_micros - row.cost_micros, at_risk=-row.at_risk_micros)
        self._counters.change(scopes_of(row.day, row.catalogue, row.run_scope), change)
        return row.shard

    def adopt(self, facts: dict[str, Any]) -> None:
        """Enter an attempt as another copy of this book had it, or bring ours to where it was there, with its money.

        `facts` are columns of `attempts`; what can only have been assumed does not replace what this book knows.
        """
        query = sa.select(_attempts).where(_attempts.c.attempt_id == facts["attempt_id"])
        row = self.connection.execute(self._database.lock_rows(query)).one_or_none()
        if row is None:
            self.connection.execute(_INSERT, facts)
            after = facts
        else:
            known = {name: value for name, value in facts.items() if name not in _ASSUMED}
            self.connection.execute(
                _attempts.update().where(_attempts.c.attempt_id == facts["attempt_id"]).values(known)
            )
            before = {column.name: getattr(row, column.name) for column in _attempts.c}
            after = {**before, **known}
            self._counters.change(_scopes(before), Holding().minus(_held(before)))
        self._counters.change(_scopes(after), _held(after))

    def note(self, attempt: Attempt, *, only_in: AttemptState | None = None, **facts: Any) -> None:
        """Record `facts` (columns of `attempts`) that change neither state nor money; `only_in` this state, if any."""
        noting = _attempts.update().where(_attempts.c.attempt_id == attempt.attempt_id).values(**facts)
        if only_in is not None:
            noting = noting.where(_attempts.c.state == only_in.value)
        self.connection.execute(noting)

    def defer(self, item_ids: Sequence[str], note: str) -> None:
        """Mark items as waiting for a later run, with the reason."""
        if item_ids:
            self.connection.execute(_DEFER, [{"b_item": item_id, "b_note": note} for item_id in item_ids])

    def execute(self, statement: Any, parameters: Any = None) -> Any:
        """A statement of another part of the ledger, in this transaction."""
        return self.connection.execute(statement, parameters)

    def _update(self, attempt: Attempt, before: AttemptState, to: AttemptState, facts: dict[str, Any]) -> bool:
        statement = _transition(tuple(sorted(facts)))
        result = self.connection.execute(statement, _transition_of(attempt, before, to, facts))
        return result.rowcount == 1

    def _write_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for statement, rows in gathered.items():
            if self._connection.execute(statement, rows).rowcount != len(rows):
                raise DoubtError
        # An item's state hangs on those of its attempts, so items come second.
        changes, self._item_changes = self._item_changes, {}
        for statement, rows in changes.items():
            self._connection.execute(statement, rows)

    def _reread(self, attempt: Attempt) -> AttemptState | None:
        query = sa.select(_attempts.c.state, _attempts.c.cost_micros).where(
            _attempts.c.attempt_id == attempt.attempt_id
        )
        row = self.connection.execute(self._database.lock_rows(query)).one_or_none()
        if row is None:
            return None
        self._change(attempt, cost_micros=row.cost_micros)
        return AttemptState(row.state)

    def _change(self, attempt: Attempt, **facts: Any) -> None:
        """Have the attempt in memory say what the book says now."""
        self._changed.append((attempt, {name: getattr(attempt, name) for name in facts}))
        for name, value in facts.items():
            setattr(attempt, name, value)

    def _set_item(self, attempt: Attempt, before: AttemptState, then: ItemState | None, note: str | None) -> None:
        state = then or ITEM_STATE_OF[attempt.state]
        if attempt.state in _CLOSED:
            row = {"b_item": attempt.item_id, "b_hash": attempt.request_hash, "b_state": state, "b_note": note}
            self._change_item(_ITEM_AFTER_CLOSE, row)
        elif state is not ITEM_STATE_OF[before]:
            self._change_item(_ITEM_SET, {"b_item": attempt.item_id, "b_state": state})

    def _change_item(self, statement: sa.Update, row: dict[str, Any]) -> None:
        if self._gather:
            self._item_changes.setdefault(statement, []).append(row)
        else:
            self._connection.execute(statement, row)


@dataclass(slots=True)
class _Admission:
    """What one round of admissions enters: attempts, and the claims on their items."""

    now: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.claims)

    @property
    def day(self) -> str:
        return datetime.fromtimestamp(self.now / 1000, UTC).date().isoformat()

    def claim(self, attempt: Attempt) -> None:
        self.claims.append({"b_item": attempt.item_id, "b_attempts": attempt.attempt, "b_attempt": attempt.attempt_id})


def _first_submit(candidate: Candidate, reserve_micros: int, worker: Worker, admission: _Admission) -> Attempt:
    attempt = Attempt(
        attempt_id=_new_attempt_id(admission.now),
        item_id=candidate.item_id,
        attempt=candidate.attempts + 1,
        catalogue=candidate.catalogue,
        shard=candidate.shard,
        prompt_id=candidate.prompt_id,
        sample=candidate.sample,
        model=candidate.model,
        resolution=candidate.resolution,
        request_hash=candidate.request_hash,
        cause=candidate.cause,
        run_id=worker.run_id,
        root_run_id=worker.root_run_id,
        run_scope=worker.run_scope,
        day=admission.day,
        state=AttemptState.SUBMITTING,
        reserved_micros=reserve_micros,
        cost_micros=0,
        submits=1,
        polls=0,
        created_at=admission.now,
        submitted_at=None,
        completed_at=None,
        delivery_failed_at=None,
        delivery_vain_ms=0,
        task_id=None,
        urls=None,
        text=None,
        error_kind=None,
        body=candidate.body,
        failures=candidate.failures,
    )
    admission.rows.append(
        {
            "attempt_id": attempt.attempt_id,
            "item_id": attempt.item_id,
            "attempt": attempt.attempt,
            "catalogue": attempt.catalogue,
            "shard": attempt.shard,
            "prompt_id": attempt.prompt_id,
            "sample": attempt.sample,
            "campaign": candidate.campaign,
            "model": attempt.model,
            "resolution": attempt.resolution,
            "request_hash": attempt.request_hash,
            "cause": candidate.cause,
            "run_id": worker.run_id,
            "root_run_id": worker.root_run_id,
            "run_scope": worker.run_scope,
            "plan_hash": worker.plan_hash,
            "owner": worker.owner,
            "state": attempt.state,
            "day": attempt.day,
            "created_at": admission.now,
            "submits": 1,
            "reserved_micros": reserve_micros,
        }
    )
    return attempt


_MIRRORED = frozenset(Attempt.__dataclass_fields__)
_CLOSED = frozenset(AttemptState) - set(OPEN_STATES)
_CORRECTABLE = _CLOSED - {AttemptState.REFUSED}

_ASSUMED = {"cause", "root_run_id", "run_scope", "owner", "day", "submits"}
"""What tables do not show of an attempt."""

_bind = sa.bindparam

_ITEMS = (
    sa.select(_items.c.item_id, _items.c.attempts, _items.c.request_hash, _items.c.state, _items.c.active)
    .where(_items.c.item_id.in_(_bind("b_items", expanding=True)))
    .order_by(_items.c.item_id)
)
_CLAIM = (
    _items.update()
    .where(_items.c.item_id == _bind("b_item"))
    .values(state=ItemState.OPEN.value, note=None, attempts=_bind("b_attempts"), last_attempt_id=_bind("b_attempt"))
)
_INSERT = _attempts.insert()
_mine = _leases.alias("mine")
_others = _leases.alias("others")
_IN_FLIGHT = sa.select(
    sa.func.count().label("total"),
    sa.func.count().filter(_attempts.c.owner == _bind("b_owner")).label("mine"),
    sa.select(sa.func.count())
    .select_from(_others)
    .where(
        _others.c.waiting,
        _others.c.owner != _bind("b_owner"),
        _others.c.account == _bind("b_account"),
        _others.c.expires_at > _bind("b_now"),
    )
    .scalar_subquery()
    .label("others_waiting"),
    sa.select(_mine.c.waiting).where(_mine.c.owner == _bind("b_owner")).scalar_subquery().label("waited"),
).where(
    sa.text("state IN (" + ", ".join(f"'{state}'" for state in IN_FLIGHT_STATES) + ")"),
    # The partial index's own condition, so that SQLite may use it.
    sa.text("state IN (" + ", ".join(f"'{state}'" for state in OPEN_STATES) + ")"),
    # What a worker without a lease left open would otherwise fill the limit for ever: its successor found no room to
    # begin in, and so never came to the end of its shard, where it would have taken those attempts over.
    _attempts.c.owner.in_(
        sa.select(_leases.c.owner).where(
            _leases.c.expires_at > _bind("b_now"), _leases.c.account.in_([_bind("b_account"), ""])
        )
    ),
)
_WAITS = _leases.update().where(_leases.c.owner == _bind("b_owner")).values(waiting=_bind("b_waits"))
_DEFER = (
    _items.update()
    .where(
        _items.c.item_id == _bind("b_item"),
        _items.c.state.in_([ItemState.PENDING.value, ItemState.DEFERRED.value]),
    )
    .values(state=ItemState.DEFERRED.value, note=_bind("b_note"))
)
_ITEM_SET = _items.update().where(_items.c.item_id == _bind("b_item")).values(state=_bind("b_state"))
_EDITED = _items.c.request_hash != _bind("b_hash")
# Edited back meanwhile to a request that it has an image of; or asked for anew, and no image came of it.
_KEEPS_ITS_IMAGE = sa.and_(
    # Not IN: that can't be said of many rows at once.
    sa.or_(_EDITED, _bind("b_state") == ItemState.FAILED.value, _bind("b_state") == ItemState.DEFERRED.value),
    has_image(_items.c.item_id, _items.c.request_hash),
)
_ITEM_AFTER_CLOSE = (
    _items.update()
    .where(_items.c.item_id == _bind("b_item"))
    .values(
        state=sa.case(
            (_KEEPS_ITS_IMAGE, ItemState.DONE.value),
            (_EDITED, ItemState.PENDING.value),
            else_=_bind("b_state"),
        ),
        note=sa.case((_KEEPS_ITS_IMAGE, None), else_=_bind("b_note")),
    )
)


@cache
def _transition(columns: tuple[str, ...]) -> sa.Update:
    # Built once per set of columns: building a statement costs more than running it.
    return (
        _attempts.update()
        .where(_attempts.c.attempt_id == _bind("b_id"), _attempts.c.state == _bind("b_before"))
        .values(state=_bind("b_to"), **{name: _bind(name) for name in columns})
    )


def _transition_of(
    attempt: Attempt, before: AttemptState, to: AttemptState, facts: Mapping[str, Any]
) -> dict[str, Any]:
    return {"b_id": attempt.attempt_id, "b_before": before, "b_to": to, **facts}


def _scopes(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return scopes_of(row["day"], row["catalogue"], row["run_scope"])


def _held(row: Mapping[str, Any]) -> Holding:
    """Where the money of a row stands; not by its state alone, as an invoice may have settled it since."""
    reserved = row["reserved_micros"] if row["state"] in IN_FLIGHT_STATES else 0
    return Holding(reserved, row["cost_micros"], row["at_risk_micros"])


def _new_attempt_id(now_ms: int) -> str:
    # Time first, so that new rows land at the end of the index and not all over it.
    return f"{now_ms:012x}{secrets.token_hex(10)}"
