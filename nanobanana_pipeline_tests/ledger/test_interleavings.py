"""Any interleaving of two workers, crashes, edits and answers keeps the books right (a stateful property test)."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.entries import Attempt, Candidate, Cause, Worker
from nanobanana_pipeline.ledger.leases import Lease
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.states import MOVES, OPEN_STATES, AttemptState, Holding, ItemState, holding
from nanobanana_pipeline.ledger.work import take_over
from nanobanana_pipeline_tests.ledger.books import PRICE, admit, enter, prompt

S = AttemptState
SHARD = "cat-000000"
IDS = ("a", "b", "c")
CAP = 8 * PRICE
COSTS = (0, PRICE // 2, PRICE, 2 * PRICE)
BY_A_PERSON = {Cause.RESUBMIT, Cause.REGENERATE, Cause.RETRY_FAILED}
MAY_BE_BILLED = {S.SUBMITTED, S.COMPLETED, S.STORED, S.UNUSABLE, S.UNKNOWN, S.OVERDUE}


class TwoWorkers(RuleBasedStateMachine):
    """Two workers on one shard; each sees only what it read itself, and either may die at any moment."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(f"sqlite:///{Path(self.folder.name) / 'ledger.sqlite'}")
        self.texts: dict[str, str] = dict.fromkeys(IDS, "first")
        self.pages: dict[str, list[Candidate]] = {"one": [], "two": []}
        self.workers = {name: self._new_worker(name) for name in self.pages}
        self._enter()

    def teardown(self) -> None:
        """Close what the example opened."""
        self.ledger.close()
        self.folder.cleanup()

    # --- what can happen ---------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(["one", "two"]))
    def look(self, name: str) -> None:
        """A worker reads the page of waiting items, which grows stale from now on."""
        self.pages[name] = list(self.ledger.candidates(SHARD))

    @rule(target=attempts, name=st.sampled_from(["one", "two"]), which=st.integers(0, 5))
    def submit(self, name: str, which: int) -> object:
        """A worker asks for admission of an item of its page."""
        page = self.pages[name]
        if not page:
            return None
        candidate = page[which % len(page)]
        worker = Worker(self.workers[name].owner, name, name, name)
        before = self._day()
        (verdict,) = admit(self.ledger, [candidate], worker=worker, caps=Caps(day=CAP))
        if isinstance(verdict, Attempt):
            assert sum(before) + PRICE <= CAP
            return verdict
        return None

    @rule(attempt=attempts, to=st.sampled_from(sorted(S)), cost=st.sampled_from(COSTS))
    def answer(self, attempt: Attempt | None, to: AttemptState, cost: int) -> None:
        """An answer arrives, in time, late, or from a worker that was taken for dead."""
        if attempt is None or to is S.SUBMITTING or to is S.ABANDONED or to not in MOVES[attempt.state]:
            return
        then = ItemState.PENDING if to in {S.FAILED, S.REFUSED} else None
        facts: dict[str, Any] = {"cost_micros": cost} if to is S.COMPLETED else {}
        with self.ledger.posting() as postings:
            postings.move(attempt, to, then=then, **facts)

    @rule(attempt=consumes(attempts), again=st.booleans())
    def person_decides(self, attempt: Attempt | None, *, again: bool) -> None:
        """A person abandons an outcome that nobody knows, or has it made again."""
        if attempt is not None and attempt.state in {S.UNKNOWN, S.OVERDUE}:
            with self.ledger.posting() as postings:
                then = ItemState.PENDING if again else ItemState.FAILED
                postings.move(attempt, S.ABANDONED, then=then)

    @rule(attempt=attempts, cost=st.sampled_from(COSTS))
    def invoice_arrives(self, attempt: Attempt | None, cost: int) -> None:
        """An invoice, or another price list, says what an attempt did cost."""
        if attempt is not None:
            with self.ledger.posting() as postings:
                postings.correct(attempt.attempt_id, cost, "invoice")

    @rule(target=attempts, name=st.sampled_from(["one", "two"]))
    def die_and_be_succeeded(self, name: str) -> object:
        """A worker dies; its successor takes over what it left open."""
        self.workers[name].release()
        self.pages[name] = []
        self.workers[name] = self._new_worker(name)
        with self.ledger.posting() as postings:
            taken = take_over(postings, SHARD, self.workers[name].owner, grace_s=65)
        assert all(attempt.state is not S.SUBMITTING for attempt in taken.attempts)
        return taken.attempts[0] if taken.attempts else None

    @rule(which=st.sampled_from(IDS), text=st.sampled_from(["first", "second"]))
    def edit(self, which: str, text: str) -> None:
        """A row is edited, or edited back."""
        self.texts[which] = text
        self._enter()

    @rule(which=st.sampled_from(IDS))
    def remove(self, which: str) -> None:
        """A row leaves the catalogue; it may come back by an edit."""
        self.texts.pop(which, None)
        self._enter()

    # --- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def at_most_one_open_attempt_an_item(self) -> None:
        """Two open attempts would be two bills for one picture."""
        open_ones = Counter(row.item_id for row in self._rows(schema.attempts) if row.state in OPEN_STATES)
        assert all(times == 1 for times in open_ones.values())

    @invariant()
    def nothing_is_paid_twice_but_by_a_persons_word(self) -> None:
        """Of the attempts for one request, one may be billed; more only where a person said so."""
        billable = Counter(
            (row.item_id, row.request_hash)
            for row in self._rows(schema.attempts)
            if row.state in MAY_BE_BILLED and row.cause not in BY_A_PERSON
        )
        assert all(times == 1 for times in billable.values())

    @invariant()
    def the_counters_are_the_sums_of_the_attempts(self) -> None:
        """Money that is counted twice, or not at all, is a cap that does not hold."""
        total = [0, 0, 0]
        for row in self._rows(schema.attempts):
            invoiced = row.cost_source == "invoice"
            # An invoice ends the doubt about what was given up.
            held = (
                Holding(spent=row.cost_micros)
                if invoiced
                else holding(S(row.state), row.reserved_micros, row.cost_micros)
            )
            assert row.at_risk_micros == held.at_risk
            total = [mine + theirs for mine, theirs in zip(total, held, strict=True)]
        assert list(self._day()) == total

    @invariant()
    def an_item_waits_only_while_nothing_of_it_is_open(self) -> None:
        """A waiting item with an open attempt would be submitted beside it."""
        open_items = {row.item_id for row in self._rows(schema.attempts) if row.state in OPEN_STATES}
        for row in self._rows(schema.items):
            assert (row.state in {ItemState.OPEN, ItemState.UNKNOWN, ItemState.OVERDUE}) == (row.item_id in open_items)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _new_worker(self, name: str) -> Lease:
        lease = self.ledger.lease(SHARD, name)
        lease.acquire()
        return lease

    def _enter(self) -> None:
        enter(self.ledger, [prompt(which, f"{which} {text}") for which, text in sorted(self.texts.items())])

    def _day(self) -> Holding:
        counters = self.ledger.counters()
        return next((held for scope, held in counters.items() if scope.startswith("day:")), Holding())

    def _rows(self, table: sa.Table) -> list[sa.Row[tuple[object, ...]]]:
        with self.ledger.database.read() as connection:
            return list(connection.execute(sa.select(table)).all())


TestTwoWorkers = TwoWorkers.TestCase
TestTwoWorkers.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
