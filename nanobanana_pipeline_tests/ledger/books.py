"""Builders for ledger tests: catalogues of a few prompts, and a worker that makes attempts by hand."""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from nanobanana_pipeline.catalogue.identity import Request, request_hash
from nanobanana_pipeline.catalogue.validation import CataloguePrompt
from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.database import is_transient
from nanobanana_pipeline.ledger.entries import AdmissionRequest, Attempt, Blocked, Candidate, InFlight, Stale, Worker
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.registration import Registration
from nanobanana_pipeline.model_specs.loader import load_spec

T = TypeVar("T")

SPEC: Final = load_spec()
WORKER: Final = Worker(owner="worker-1", run_id="run-1", root_run_id="run-1", run_scope="run-1")
NO_CAPS: Final = Caps()
PRICE: Final = 70_000


class OpenGate:
    """A provider that takes everything at once."""

    account = "test"

    def grant(self, _state: str | None, _now_ms: int, _in_flight: InFlight, wanted: int) -> tuple[int, float]:
        """All of them, at once."""
        return wanted, 0.0

    def take(self, state: str | None, _now_ms: int, _taken: int) -> str | None:
        """Nothing is learnt."""
        return state


def prompt(
    prompt_id: str, text: str | None = None, *, samples: int = 1, catalogue: str = "cat", priority: int = 0
) -> CataloguePrompt:
    """A valid prompt; its text is its id unless given."""
    request = Request(model=SPEC.name, prompt=text or prompt_id)
    return CataloguePrompt(
        catalogue=catalogue,
        prompt_id=prompt_id,
        samples=samples,
        request=request,
        request_hash=request_hash(request, SPEC),
        campaign=None,
        labels=None,
        priority=priority,
    )


def enter(
    ledger: Ledger, prompts: Sequence[CataloguePrompt], *, shard_size: int = 1000, fingerprint: str | None = "f"
) -> Registration:
    """Register prompts as the whole of their catalogue."""
    catalogue = prompts[0].catalogue if prompts else "cat"
    report = ledger.register(
        catalogue,
        [prompts],
        default_resolution=SPEC.default_resolution,
        shard_size=shard_size,
        complete=lambda: fingerprint is not None,
    )
    if fingerprint is not None:
        ledger.seal(catalogue, fingerprint)
    return report


def waiting(ledger: Ledger, shard: str = "cat-000000") -> list[Candidate]:
    """The items of a shard that wait for an attempt."""
    return ledger.candidates(shard)


def admit(
    ledger: Ledger,
    candidates: Sequence[Candidate],
    *,
    worker: Worker = WORKER,
    caps: Caps = NO_CAPS,
    price: int = PRICE,
    again: Attempt | None = None,
) -> list[Attempt | Stale | Blocked]:
    """Ask for admission of candidates, each at `price` micro-dollars."""
    with ledger.posting() as postings:
        return postings.admit([AdmissionRequest(it, price, again) for it in candidates], worker, caps, OpenGate())


def admitted(ledger: Ledger, candidate: Candidate, *, worker: Worker = WORKER, price: int = PRICE) -> Attempt:
    """An attempt that was admitted."""
    (verdict,) = admit(ledger, [candidate], worker=worker, price=price)
    assert isinstance(verdict, Attempt), verdict
    return verdict


def late_to_look_for_deadlocks(postgres_url: str) -> str:
    """The same database, in which a transaction that waits looks for a deadlock after five seconds, and not after one.

    It looks once. A busy machine took longer than one to begin the other's wait, which was then the one that was ended.
    """
    return (
        make_url(postgres_url)
        .update_query_dict({"options": "-c deadlock_timeout=5s"})
        .render_as_string(hide_password=False)
    )


def beside_a_worker(ledger: Ledger, command: Callable[[], T], holds: sa.Executable, wants: sa.Executable) -> T:
    """What a command gives that waits for what a worker `holds`, and has what this then `wants`.

    PostgreSQL ends one of the two: the command, which waits longer. Skips the test where it ended the worker all the
    same, which shows nothing about commands.
    """
    with ThreadPoolExecutor(1) as thread:
        with _skipped_if_ended(), ledger.posting() as worker:
            worker.execute(holds)
            done = thread.submit(command)
            # Whoever has waited long enough looks for a deadlock, once, and is ended: it must have come first.
            _wait_until_held_up(ledger)
            worker.execute(wants)
        return done.result(120)


@contextmanager
def _skipped_if_ended() -> Generator[None]:
    """Where PostgreSQL ends this transaction itself: once, CI took more than five seconds between the two waits."""
    try:
        yield
    except DBAPIError as error:
        if not is_transient(error):
            raise
        pytest.skip("PostgreSQL ended the worker and not the command: the machine was too slow between their waits")


def _wait_until_held_up(ledger: Ledger) -> None:
    """Until somebody waits for a row that another holds."""
    waits = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    ends = time.monotonic() + 120
    while True:
        with ledger.database.read() as connection:
            if connection.execute(waits).scalar_one():
                return
        assert time.monotonic() < ends
