"""One account, many hosts: open tasks are counted over all of its workers, and over no other account's."""

import threading
from collections.abc import Sequence

import pytest

from nanobanana_pipeline.generation.limits import ProviderGate
from nanobanana_pipeline.ledger.entries import AdmissionRequest, Attempt, Candidate, Worker
from nanobanana_pipeline.ledger.leases import Lease
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.postings import Postings, Verdict
from nanobanana_pipeline.ledger.states import AttemptState, ItemState
from nanobanana_pipeline_tests.ledger.books import NO_CAPS, PRICE, enter, prompt, waiting


class Host:
    """A worker of an account, as on a machine of its own; `most` is its account's limit on open tasks."""

    def __init__(self, ledger: Ledger, name: str, account: str, *, most: int) -> None:
        self.lease: Lease = ledger.lease("cat-000000", name, account=account, seconds=600)
        self.lease.acquire()
        self._worker = Worker(self.lease.owner, name, name, name)
        self._open: list[Attempt] = []
        self._gate = ProviderGate(account, max_in_flight=most, requests_per_minute=None)

    def admit(self, postings: Postings, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Ask for these, inside a transaction."""
        return postings.admit([AdmissionRequest(it, PRICE) for it in candidates], self._worker, NO_CAPS, self._gate)

    def admitted(self, ledger: Ledger, candidates: Sequence[Candidate]) -> int:
        """How many of these may be sent now."""
        with ledger.posting() as postings:
            admitted = [each for each in self.admit(postings, candidates) if isinstance(each, Attempt)]
        self._open += admitted
        return len(admitted)

    def end_one(self, ledger: Ledger) -> None:
        """One of its tasks ends."""
        with ledger.posting() as postings:
            assert postings.move(self._open.pop(), AttemptState.REFUSED, then=ItemState.DEFERRED)


@pytest.fixture
def items(ledger: Ledger) -> list[Candidate]:
    """Thirty items that wait."""
    enter(ledger, [prompt(f"p{n:02d}") for n in range(30)])
    return waiting(ledger)


def test_hosts_of_an_account_share_its_limit(ledger: Ledger, items: list[Candidate]) -> None:
    """The provider counts what the account has open, not what one machine has."""
    one, two, three = (Host(ledger, name, "ours", most=8) for name in ("one", "two", "three"))
    assert one.admitted(ledger, items[:3]) == 3
    assert two.admitted(ledger, items[3:6]) == 3
    assert three.admitted(ledger, items[6:12]) == 2


def test_accounts_are_pools_of_their_own(ledger: Ledger, items: list[Candidate]) -> None:
    """A second key buys a second limit, and waits for nothing of the first's."""
    first, second = Host(ledger, "one", "ours", most=4), Host(ledger, "two", "theirs", most=4)
    assert first.admitted(ledger, items[:10]) == 4
    assert second.admitted(ledger, items[10:20]) == 4
    assert first.admitted(ledger, items[20:]) == 0


def test_who_waits_gets_its_share_of_what_becomes_free(ledger: Ledger, items: list[Candidate]) -> None:
    """Else the run that fills the limit first keeps it filled until its end."""
    large, small = Host(ledger, "large", "ours", most=4), Host(ledger, "small", "ours", most=4)
    assert large.admitted(ledger, items[:10]) == 4
    assert small.admitted(ledger, items[10:13]) == 0
    # One of the large run's tasks ends. It asks first; the place is not for it.
    large.end_one(ledger)
    assert large.admitted(ledger, items[13:20]) == 0
    assert small.admitted(ledger, items[10:13]) == 1
    large.end_one(ledger)
    assert small.admitted(ledger, items[11:12]) == 1
    # It has what it wanted: the rest is the large run's again.
    large.end_one(ledger)
    assert large.admitted(ledger, items[20:]) == 1


def test_who_has_left_waits_no_longer(ledger: Ledger, items: list[Candidate]) -> None:
    """A killed run's wish must not keep places empty for good."""
    large, small = Host(ledger, "large", "ours", most=4), Host(ledger, "small", "ours", most=4)
    assert large.admitted(ledger, items[:4]) == 4
    assert small.admitted(ledger, items[10:13]) == 0
    small.lease.release()
    large.end_one(ledger)
    assert large.admitted(ledger, items[13:20]) == 1


@pytest.mark.postgres
def test_hosts_that_ask_at_the_same_moment_do_not_fill_the_same_room(postgres_url: str) -> None:
    """SQLite has one writer. On PostgreSQL the second must wait for the first's answer before it counts."""
    with Ledger(postgres_url) as ledger:
        enter(ledger, [prompt(f"p{n}") for n in range(4)])
        items = waiting(ledger)
        one, two = Host(ledger, "one", "ours", most=2), Host(ledger, "two", "ours", most=2)
        found: list[int] = []
        with ledger.posting() as postings:
            one.admit(postings, items[:2])
            second = threading.Thread(target=lambda: found.append(two.admitted(ledger, items[2:])))
            second.start()
            second.join(0.5)
            assert second.is_alive()
        second.join(120)
        assert found == [0]
