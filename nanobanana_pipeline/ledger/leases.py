"""Who works on what: a lease per worker and shard, renewed by heartbeat, on the database's clock.

A worker may send only while its lease holds. Another may take its attempts over once the lease, a submit's longest
time and a margin have passed, or at once when the owner is known to be dead (same machine: boot id, pid namespace,
pid, start time).
"""

import os
import secrets
import socket
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.database import Database

_leases = schema.leases

LEASE_S = 30.0
# On Linux the monotonic clock stands still while the machine sleeps; a lease in the book runs out meanwhile.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LeaseLostError(Exception):
    """The worker's lease ran out (it was stopped, or the ledger was out of reach): it must not send any more."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Enough to tell on the same machine whether a process is still that process."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """The process that asks."""
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), os.getpid(), _start_time(os.getpid()) or "")

    def known_dead(self) -> bool:
        """Whether the process is certainly gone. False when that can't be told from here."""
        if not self.boot_id or not self.started or self.boot_id != _boot_id():
            return False
        if self.pid_namespace != _pid_namespace():
            return False
        return _start_time(self.pid) != self.started and not _hidden(self.pid)


class Lease:
    """One worker's right to send for a shard. `check` costs no I/O; `renew` is called by the heartbeat."""

    def __init__(
        self, database: Database, shard: str, run_id: str, *, account: str = "", seconds: float = LEASE_S
    ) -> None:
        self.owner = f"{run_id[:8]}-{secrets.token_hex(6)}"
        self.shard = shard
        self._database = database
        self._run_id = run_id
        self._account = account
        self._seconds = seconds
        self._holds_until = 0.0

    @property
    def heartbeat_s(self) -> float:
        """How often to renew: a third of the lease, so that one lost beat does no harm."""
        return self._seconds / 3

    def acquire(self) -> None:
        """Enter this worker in the book."""
        asked = _seconds()
        identity = ProcessIdentity.current()
        with self._database.write() as connection:
            now = self._database.now(connection)
            connection.execute(
                _leases.insert().values(
                    owner=self.owner,
                    shard=self.shard,
                    run_id=self._run_id,
                    host=identity.host,
                    boot_id=identity.boot_id,
                    pid_namespace=identity.pid_namespace,
                    pid=identity.pid,
                    started=identity.started,
                    acquired_at=now,
                    expires_at=now + int(self._seconds * 1000),
                    account=self._account,
                )
            )
        self._holds_until = asked + self._seconds

    def renew(self) -> None:
        """Extend the lease, also one that ran out while the ledger was out of reach and that nobody took over.

        Raises `LeaseLostError` when another worker has taken it over.
        """
        self._database.through_loss(self._renew)

    def _renew(self) -> None:
        # Counted from before the question, since the answer may be slow: our end must never be later than the book's.
        asked = _seconds()
        with self._database.write() as connection:
            expires_at = self._database.now(connection) + int(self._seconds * 1000)
            update = _leases.update().where(_leases.c.owner == self.owner).values(expires_at=expires_at)
            if connection.execute(update).rowcount != 1:
                self._holds_until = 0.0
                raise LeaseLostError(f"the lease of {self.owner} on shard {self.shard} was taken over")
        self._holds_until = asked + self._seconds

    def check(self) -> None:
        """Raise `LeaseLostError` unless the lease still holds; called right before each send."""
        if _seconds() >= self._holds_until:
            raise LeaseLostError(f"the lease of {self.owner} on shard {self.shard} ran out before it was renewed")

    def release(self) -> None:
        """Leave the book; what is still open can be taken over at once."""
        self._holds_until = 0.0
        self._database.through_loss(self._leave)

    def _leave(self) -> None:
        with self._database.write() as connection:
            connection.execute(_leases.delete().where(_leases.c.owner == self.owner))


def expired_owners(
    connection: Connection, now: int, owners: set[str], *, grace_s: float
) -> tuple[set[str], dict[str, int]]:
    """Split `owners` into those whose attempts may be taken over now, and the others with the end of their lease."""
    if not owners:
        return set(), {}
    # Held until the end of the transaction: a worker whose ledger comes back this moment renews before the answer here,
    # or finds its lease gone. In between, it would send what its successor takes for abandoned.
    query = sa.select(_leases).where(_leases.c.owner.in_(owners)).order_by(_leases.c.owner).with_for_update()
    rows = {row.owner: row for row in connection.execute(query)}
    held = {owner: row.expires_at for owner, row in rows.items() if not _is_over(row, now, int(grace_s * 1000))}
    return owners - held.keys(), held


def _is_over(row: Row[tuple[object, ...]], now: int, grace_ms: int) -> bool:
    return now > row.expires_at + grace_ms or identity_of(row).known_dead()


def identity_of(row: Row[tuple[object, ...]]) -> ProcessIdentity:
    """The process that a row of `leases` names."""
    return ProcessIdentity(row.host, row.boot_id, row.pid_namespace, row.pid, row.started)


def _seconds() -> float:
    """By this machine's clock that is never set."""
    return time.clock_gettime(_CLOCK)


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _hidden(pid: int) -> bool:
    """Whether there is such a process, of another user, and /proc shows nothing of it (mounted with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except OSError:
        return False
    return False


def _start_time(pid: int) -> str | None:
    """The process's start time in clock ticks since boot; None when there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name, in brackets, may itself hold spaces and brackets.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in {"Z", "X"} else fields[19]
