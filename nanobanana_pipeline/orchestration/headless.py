"""The whole pipeline through Dagster in this one process: the catalogue, every shard with work left, then the reports.

Each step is an ordinary Dagster run, seen in its pages like any other; shards overlap in threads. How a run is shown on
a terminal belongs to the command line, what a run does to the assets.
"""

import gc
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Protocol
from uuid import uuid4

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation import rest
from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.shard_run import ShardReport
from nanobanana_pipeline.generation.staleness import COMPARED
from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.work import ShardWork, first_to_begin, items_named
from nanobanana_pipeline.memory import give_back
from nanobanana_pipeline.orchestration.command_log import log_file, logging_to
from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.event_log import kept_open
from nanobanana_pipeline.orchestration.instance import free_dead_slots, opening, prepare_home
from nanobanana_pipeline.orchestration.jobs import (
    GENERATE_IMAGES,
    REFRESH_CATALOGUE,
    REPORT_COSTS,
    generation_config,
    refresh_config,
)
from nanobanana_pipeline.orchestration.order import Order, Share, shares, shares_of
from nanobanana_pipeline.orchestration.outcome import Outcome
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.orchestration.run_tags import Ended
from nanobanana_pipeline.orchestration.session import Session
from nanobanana_pipeline.reporting.approval import Ruling, rule, save
from nanobanana_pipeline.reporting.costs import publish_cost_daily, summary
from nanobanana_pipeline.reporting.draft import Wanted
from nanobanana_pipeline.reporting.plan import plan
from nanobanana_pipeline.settings import Settings

COMMAND_TAG: Final = "nanobanana/command"
"""On every run of one command, so that they can be found together in Dagster's pages."""

_LOGGER: Final = "file"
_SHARDS_AT_ONCE: Final = 4
"""Shards that have something left to begin."""
_SHARDS_OPEN: Final = 12
"""All shards at work: the slow tail of one must not keep the next from beginning."""
_TICK_S: Final = 0.2
_CATALOGUE_GRACE_S: Final = 8.0
"""How long a stop waits for the catalogue to be entered. Cut short, it is entered again by the next run."""
_REPORT_GRACE_S: Final = 8.0
"""As long for the pages, which the next run makes anew."""
_STOP_LIMIT_S: Final = 60.0
"""Far beyond what a stop takes: after it the process ends in whatever state it is, as a crash would end it."""
_WHOLE_STOP_LIMIT_S: Final = 2 * _STOP_LIMIT_S
"""As long again for what comes after the threads' work; the ledger alone may be waited for for ten minutes there."""

# Dagster's redirection of what steps print takes the whole process, its other threads and the terminal included.
_NO_REDIRECTION: Final = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}


class Watcher(Protocol):
    """Who follows a run; called from the main thread only."""

    def phase(self, text: str) -> None:
        """A part of the work begins that can't be counted."""
        ...

    def generating(self, items: int, shards: int) -> None:
        """Generation begins."""
        ...

    def tick(self, tally: Tally) -> None:
        """Where the run stands, several times a second."""
        ...

    def stopping(self) -> None:
        """A stop was asked for."""
        ...


def run_pipeline(settings: Settings, order: Order, watcher: Watcher, *, home: Path, logs: Path) -> Outcome:
    """Do what `order` asks for and leave every table current. `home` is DAGSTER_HOME, `logs` a folder for log files.

    Raises `UserError` when it could not be done. SIGINT, SIGTERM and SIGHUP stop it gracefully; the outcome says so.
    """
    began = time.monotonic()
    home = prepare_home(home)
    command = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{token_hex(3)}"
    log = log_file(logs, command)
    with Workspace.open(settings) as workspace, instance_for_threads(home) as instance:
        resource = NanoBananaResource.from_settings(settings)
        # Asked before anything else: a provider out of reach, or a ledger that is someone else's, is one line at once.
        with resource.provider(workspace) as access, logging_to(log, settings.log_format) as logger:
            outcome = Outcome(access.stamp, workspace.output, str(log))
            free_dead_slots(instance)
            session = Session(run_scope=command, logs_to_file=True)
            console = dg.LoggerDefinition(lambda _: logger, description="This command's log file.")
            defs = dg.Definitions.merge(
                build_defs(session=session, settings=settings), dg.Definitions(loggers={_LOGGER: console})
            )
            run = _Run(settings, order, watcher, workspace, instance, defs, session, outcome, logger)
            with run.signals():
                run.whole()
        outcome.duration_s = time.monotonic() - began
        return outcome


@contextmanager
def instance_for_threads(home: Path) -> Generator[dg.DagsterInstance]:
    """The Dagster instance of `home`, such that several runs can go on in threads of this process."""
    with opening(home):
        opened = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=_NO_REDIRECTION))
    with opened as instance, kept_open(instance.event_log_storage):
        # For every run Dagster configures Python's logging anew to find the handlers of dagster.yaml, which takes all
        # handlers' locks in turn. While another thread logs that is a deadlock, so they are looked up once.
        handlers = list(instance.get_yaml_python_handlers())
        instance.get_yaml_python_handlers = lambda: handlers
        yield instance


class _Run:
    """One command under way."""

    def __init__(
        self,
        settings: Settings,
        order: Order,
        watcher: Watcher,
        workspace: Workspace,
        instance: dg.DagsterInstance,
        defs: dg.Definitions,
        session: Session,
        outcome: Outcome,
        logger: logging.Logger,
    ) -> None:
        self._on_unknown = settings.on_unknown
        self._max_attempts = settings.max_attempts
        self._order = order
        self._watcher = watcher
        self._workspace = workspace
        self._instance = instance
        # Resolved here, once: Dagster does it lazily, and not for threads.
        self._jobs = {job: defs.resolve_job_def(job) for job in (REFRESH_CATALOGUE, GENERATE_IMAGES, REPORT_COSTS)}
        self._outcome = outcome
        self._logger = logger
        self._tallies: dict[str, Tally] = {}
        self._run_of_shard: dict[str, str] = {}
        self._written: set[str] = set()
        self._session = session
        session.on_progress, session.on_report = self._tallies.__setitem__, self._on_report

    def whole(self) -> None:
        """Every step in turn."""
        mark = rest.look(self._workspace)
        known = None if self._order.catalogue else rest.found_at(self._workspace, mark)
        # What a killed run has left open is asked about first: the rows are written when it has ended.
        unfinished = [work.shard for work in self._shard_work() if work.left] if known is None else []
        lagging = self._mend_tables(current=known is not None, later=unfinished)
        names = None if self._order.catalogue is None else [self._order.catalogue]
        self._step(REFRESH_CATALOGUE, "reading the catalogue", _CATALOGUE_GRACE_S, refresh_config(names))
        refusal: UserError | None = None
        # Nothing to make needs no plan: to make one, all of the catalogue is read.
        if self._going_on and (parts := self._shares()):
            refusal = self._rule(names, parts)
            # Entering and planning a large catalogue take far more than making its images.
            give_back()
            self._generate(parts if refusal is None else self._shares())
        if not lagging <= self._written:
            self._mend_tables()
        if self._going_on:
            self._step(REPORT_COSTS, "adding up", _REPORT_GRACE_S)
        else:
            # Pages can wait; the tables must be right.
            publish_cost_daily(self._workspace)
        self._sum_up()
        self._note_rest(mark)
        if self._session.failure is not None:
            raise self._session.failure
        if refusal is not None and self._going_on:
            raise refusal

    @property
    def _going_on(self) -> bool:
        """Whether nobody, and nothing, has stopped it yet."""
        return not self._session.stop.thrown and not self._outcome.problems

    def _step(self, job: str, phase: str, grace_s: float, config: Mapping[str, Any] | None = None) -> None:
        """Run a job of one run; in a thread, so that signals are seen to at once."""
        self._watcher.phase(phase)
        with ThreadPoolExecutor(1, thread_name_prefix=job) as thread:
            self._follow([thread.submit(self._execute, job, config=config)], grace_s)

    def _rule(self, names: Sequence[str] | None, parts: Sequence[Share]) -> UserError | None:
        """Plan what is to be made, and keep to it; why nothing new may be begun, if it may not."""
        order = self._order
        chosen = frozenset(item for part in parts for item in part.chosen)
        wanted = Wanted(order.limit, order.rerun, order.resubmit_unknown, items=chosen)
        self._watcher.phase("planning")
        planned = save(self._workspace, plan(self._workspace, names, wanted))
        ruling = Ruling(planned.hash) if order.max_cost_usd is not None else rule(self._workspace, planned)
        if ruling.refusal is not None:
            # What is under way is finished all the same: it is paid for.
            self._order = Order(catalogue=order.catalogue, limit=0)
        self._session.ruling = Ruling(ruling.plan_hash)
        return ruling.refusal

    @contextmanager
    def signals(self) -> Generator[None]:
        """Turn signals into a graceful stop."""
        stop = self._session.stop

        def hang_up(number: int, _frame: object) -> None:
            stop.signal_number = number
            stop.throw()

        with stop.on_signals(), self._ended_in_time():
            before = signal.getsignal(signal.SIGHUP)
            if before is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, hang_up)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    @contextmanager
    def _ended_in_time(self) -> Generator[None]:
        """See to it that a stop comes to an end, wherever the main thread waits then."""
        limits: list[threading.Timer] = []

        def begin() -> None:
            if not limits:
                limits.append(threading.Timer(_WHOLE_STOP_LIMIT_S, self._end_hard))
                limits[0].daemon = True
                limits[0].start()

        with self._session.stop.calling(begin):
            try:
                yield
            finally:
                for limit in limits:
                    limit.cancel()

    def _shares(self) -> list[Share]:
        order = self._order
        if not order.items:
            return shares(order, self._shard_work(), self._firsts(), on_unknown=self._on_unknown)
        with self._workspace.ledger.database.read() as connection:
            named = items_named(connection, order.items, order.catalogue)
        return shares_of(order, named)

    def _firsts(self) -> Mapping[str, int] | None:
        """How many of the items that are within the limit each shard has; None without a limit."""
        order = self._order
        if order.limit is None:
            return None
        with self._workspace.ledger.database.read() as connection:
            return first_to_begin(
                connection,
                order.limit,
                rerun=order.rerun,
                unknown_too=order.resubmits(self._on_unknown),
                # A person's word is about any attempt, the settings' only about so many.
                max_attempts=None if order.resubmit_unknown else self._max_attempts,
                catalogues=None if order.catalogue is None else [order.catalogue],
            )

    def _generate(self, parts: Sequence[Share]) -> None:
        if not parts:
            return
        self._outcome.shards = [part.shard for part in parts]
        self._watcher.generating(sum(part.items for part in parts), len(parts))
        waiting, open_shards = deque(parts), dict[Future[None], Share]()
        with ThreadPoolExecutor(min(_SHARDS_OPEN, len(parts)), thread_name_prefix="shard") as threads:

            def begin() -> list[Future[None]]:
                if self._session.stop.thrown:
                    return []
                for future in [future for future in open_shards if future.done()]:
                    del open_shards[future]
                beginning = sum(not self._all_begun(part) for part in open_shards.values())
                room = min(_SHARDS_AT_ONCE - beginning, _SHARDS_OPEN - len(open_shards), len(waiting))
                new = [waiting.popleft() for _ in range(room)]
                futures = [threads.submit(self._generate_shard, part) for part in new]
                open_shards.update(zip(futures, new, strict=True))
                return futures

            self._follow(begin(), _STOP_LIMIT_S, begin)

    def _all_begun(self, part: Share) -> bool:
        """Whether a shard only waits for the ends of what it has begun."""
        tally = self._tallies.get(part.shard)
        return tally is not None and tally.finished + tally.in_flight >= part.items

    def _generate_shard(self, part: Share) -> None:
        if self._session.stop.thrown:
            return
        order = self._order
        config = generation_config(
            limit=part.limit,
            retry_failed=order.retry_failed,
            resubmit_unknown=order.resubmit_unknown,
            regenerate=order.regenerate,
            items=" ".join(part.chosen),
            allow_duplicates=order.allow_duplicates,
            max_cost_usd=order.max_cost_usd,
        )
        self._execute(GENERATE_IMAGES, shard=part.shard, config=config)

    def _execute(self, job: str, *, shard: str | None = None, config: Mapping[str, Any] | None = None) -> None:
        run_id = str(uuid4())
        self._outcome.run_ids.append(run_id)
        if shard is not None:
            self._run_of_shard[shard] = run_id
        result = self._jobs[job].execute_in_process(
            run_id=run_id,
            instance=self._instance,
            partition_key=shard,
            run_config={"loggers": {_LOGGER: {}}, **(config or {})},
            tags={COMMAND_TAG: self._session.run_scope or ""},
            raise_on_error=False,
        )
        if not result.success and self._session.failure is None and not self._session.stop.thrown:
            self._failed(result, shard or job)
        del result
        # A run of Dagster's leaves cycles behind, and the collector comes seldom (`memory`). What is freed lies between
        # what stays: a run of 100,000 items grew by a quarter from its first shards to its last.
        gc.collect()
        give_back()

    def _failed(self, result: dg.ExecuteInProcessResult, what: str) -> None:
        """Take in why a run failed: for a reason that the user can mend, or by a defect."""
        failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        for failure in failures:
            if failure.user_failure_data is not None:
                self._session.failed(UserError(failure.user_failure_data.description or f"{what} failed"))
                return
        for failure in failures:
            if failure.error is not None:
                self._logger.error("%s: %s", what, failure.error.to_string())
        first = next((failure.error for failure in failures if failure.error is not None), None)
        cause = None if first is None else first.cause or first
        why = "its Dagster run failed" if cause is None else " ".join(cause.message.split())
        self._outcome.problems.append(f"{what}: {why}")

    def _on_report(self, report: ShardReport) -> None:
        self._tallies[report.shard] = report.tally
        self._written.add(report.shard)
        stop = self._session.stop
        if report.interrupted and stop.signal_number == signal.SIGINT and self._session.failure is None:
            # Else it is no word on this shard: the machine shuts down, or another shard found the account empty.
            run_id = self._run_of_shard[report.shard]
            self._instance.add_run_tags(run_id, Ended.BY_A_PERSON.of(run_id))

    def _follow(
        self,
        futures: Sequence[Future[None]],
        grace_s: float,
        begin_more: Callable[[], Iterable[Future[None]]] = tuple,
    ) -> None:
        """Wait for the threads, and begin more; tell the watcher, and see to it that a stop comes to an end."""
        stopped_at: float | None = None
        left = set(futures)
        while left := left.union(begin_more()):
            done, left = wait(left, timeout=_TICK_S)
            for future in done:
                self._take(future)
            self._watcher.tick(total(self._tallies.values()))
            if self._session.stop.thrown and stopped_at is None:
                stopped_at = time.monotonic()
                if self._session.failure is None:
                    self._watcher.stopping()
            if left and stopped_at is not None and time.monotonic() - stopped_at > grace_s:
                self._end_hard()

    def _take(self, future: Future[None]) -> None:
        error = future.exception()
        if isinstance(error, UserError):
            self._session.failed(error)
        elif isinstance(error, Exception) or (error is not None and not self._session.stop.thrown):
            self._session.stop.throw()
            raise error

    def _end_hard(self) -> None:
        """End as a crash would, which everything here is made for: a thread can't be told to end."""
        unfinished = dg.RunsFilter(run_ids=self._outcome.run_ids, statuses=[dg.DagsterRunStatus.STARTED])
        for run in self._instance.get_runs(filters=unfinished):
            self._instance.report_run_canceled(run, "Stopped by a signal.")
        os._exit(128 + (self._session.stop.signal_number or signal.SIGTERM))

    def _note_rest(self, mark: rest.Mark) -> None:
        """If this run found nothing to do, and nobody did anything beside it, spare the next one the same look."""
        outcome = self._outcome
        now = rest.look(self._workspace)
        # The mark's tables were held against the ledger; reports have been written since, by this very run.
        compared = {name: mark.tables[name] for name in COMPARED}
        same = now.changes == mark.changes and compared.items() <= now.tables.items()
        standing = outcome.standing
        quiet = self._going_on and self._session.failure is None and self._order.catalogue is None
        if same and quiet and standing is not None:
            found = {"standing": asdict(standing), "rejected_rows": outcome.rejected_rows}
            rest.note(self._workspace, now, found)

    def _mend_tables(self, *, current: bool = False, later: Collection[str] = ()) -> frozenset[str]:
        """Mend what a power cut has torn, and write what an earlier run was killed before it could write.

        Of `later` shards, returns those whose rows still lag.
        """
        mended = mend_tables(self._workspace, current=current, later=later)
        for found in mended.repairs:
            self._logger.info("table %s: %s", found.table, found.what)
        if mended.shards:
            self._logger.info("written from the ledger: the rows of %s", ", ".join(mended.shards))
        return mended.left

    def _sum_up(self) -> None:
        outcome = self._outcome
        outcome.tally = total(self._tallies.values())
        outcome.signal_number = self._session.stop.signal_number
        catalogue = self._order.catalogue
        outcome.standing = summary(self._workspace, catalogue=catalogue)
        only = None if catalogue is None else {"catalogue": catalogue}
        outcome.rejected_rows = self._workspace.tables.read("rejected_prompts", ["catalogue"], only).num_rows

    def _shard_work(self) -> list[ShardWork]:
        """The work of the catalogues that are meant."""
        catalogue = self._order.catalogue
        return self._workspace.ledger.shard_work(None if catalogue is None else [catalogue])


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of several tallies."""
    summed = Tally()
    for tally in tuple(tallies):
        for each in fields(Tally):
            value = getattr(tally, each.name)
            if isinstance(value, dict):
                for kind, count in dict(value).items():
                    summed.failures_by_kind[kind] = summed.failures_by_kind.get(kind, 0) + count
            else:
                setattr(summed, each.name, getattr(summed, each.name) + value)
    return summed
