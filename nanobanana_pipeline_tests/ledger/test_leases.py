"""Leases: nobody sends for an item that another has taken, and nobody waits for the dead."""

import os
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

from nanobanana_pipeline.ledger import leases, schema
from nanobanana_pipeline.ledger.entries import Worker
from nanobanana_pipeline.ledger.leases import LeaseLostError, ProcessIdentity
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.states import AttemptState
from nanobanana_pipeline.ledger.work import TakeOver, take_over
from nanobanana_pipeline_tests.ledger.books import admitted, enter, prompt, waiting

SHARD = "cat-000000"


def taken(ledger: Ledger, by: str = "successor") -> TakeOver:
    """What a successor finds."""
    with ledger.posting() as postings:
        return take_over(postings, SHARD, by, grace_s=65)


def worker_with_open_attempt(ledger: Ledger, *, seconds: float = 30) -> leases.Lease:
    """A worker that has a submit in the air."""
    enter(ledger, [prompt("a")])
    lease = ledger.lease(SHARD, "run-1", seconds=seconds)
    lease.acquire()
    admitted(ledger, waiting(ledger)[0], worker=Worker(lease.owner, "run-1", "run-1", "run-1"))
    return lease


def test_a_living_worker_keeps_its_attempts(ledger: Ledger) -> None:
    """Two runs of one shard share the work; neither touches what the other has in the air."""
    lease = worker_with_open_attempt(ledger)
    found = taken(ledger)
    assert found.attempts == []
    assert list(found.holders) == [lease.owner]


def test_a_released_lease_frees_at_once_and_what_was_being_submitted_is_unknown(ledger: Ledger) -> None:
    """The row says `submitting`: whether it left the machine, nobody can tell."""
    worker_with_open_attempt(ledger).release()
    (attempt,) = taken(ledger).attempts
    assert attempt.state is AttemptState.UNKNOWN
    assert taken(ledger, "third").attempts[0].state is AttemptState.UNKNOWN


def test_an_expired_lease_is_taken_over_only_after_a_submits_longest_time(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped worker that wakes up may still have one request on its way."""
    worker_with_open_attempt(ledger)
    real = ledger.database.now
    for later_s, free in ((31, False), (30 + 60 + 4, False), (30 + 60 + 6, True)):
        monkeypatch.setattr(ledger.database, "now", lambda connection, ms=later_s * 1000: real(connection) + ms)
        assert bool(taken(ledger).attempts) is free


def test_a_worker_that_died_idle_leaves_the_book_as_well(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had nothing open that could be taken over, and was shown as at work for ever."""
    lease = ledger.lease(SHARD, "run-1", seconds=30)
    lease.acquire()
    real = ledger.database.now
    for later_s, there in ((30 + 65 - 1, 1), (30 + 65 + 1, 0)):
        monkeypatch.setattr(ledger.database, "now", lambda connection, ms=later_s * 1000: real(connection) + ms)
        found = taken(ledger)
        assert (found.attempts, found.holders) == ([], {})
        with ledger.database.read() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(schema.leases)).scalar_one() == there


def test_a_dead_process_on_this_machine_is_known_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting out a lease after a crash would cost minutes that nobody needs to wait."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = ProcessIdentity.current()
    started = leases._start_time(child.pid)
    assert started is not None
    theirs = ProcessIdentity(identity.host, identity.boot_id, identity.pid_namespace, child.pid, started)
    with monkeypatch.context() as patched:
        patched.setattr(ProcessIdentity, "current", classmethod(lambda _: theirs))
        worker_with_open_attempt(ledger)
    assert taken(ledger).attempts == []
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    assert len(taken(ledger).attempts) == 1
    child.wait()


def test_a_process_elsewhere_is_never_known_dead() -> None:
    """On another machine, or in another container, the same pid is somebody else."""
    mine = ProcessIdentity.current()
    gone = ProcessIdentity(mine.host, mine.boot_id, mine.pid_namespace, 2**22 + 1, "1")
    assert gone.known_dead()
    assert not ProcessIdentity(mine.host, "other-boot", mine.pid_namespace, gone.pid, "1").known_dead()
    assert not ProcessIdentity(mine.host, mine.boot_id, "pid:[1]", gone.pid, "1").known_dead()
    assert not mine.known_dead()


def test_a_lease_ends_by_the_clock_without_asking_anyone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right before each send, and it must hold even when the ledger is out of reach, or the machine has slept.

    Of the clocks that are never set, one goes on meanwhile: the other would have a sleeper send what was taken over.
    """
    lease = ledger.lease(SHARD, "run-1", seconds=30)
    lease.acquire()
    lease.check()
    real = time.clock_gettime
    slept = {time.CLOCK_BOOTTIME: 31}
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + slept.get(clock, 0))
    with pytest.raises(LeaseLostError):
        lease.check()


def test_a_lease_that_was_taken_over_can_not_be_renewed(ledger: Ledger) -> None:
    """A worker that slept through its take-over must find out before it sends anything."""
    lease = worker_with_open_attempt(ledger)
    lease.renew()
    lease.release()
    with pytest.raises(LeaseLostError):
        lease.renew()
    with pytest.raises(LeaseLostError):
        lease.check()
