"""A worker: takes runs from the broker and works on them, each in a process of its own, until it is told to end.

What a run is and how it is worked on is Dagster's and the pipeline's, as on one machine. Here is only how a run comes
here, that its worker is known to live, and what becomes of it when the worker is told to end.
"""

import logging
import os
import signal
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, Final

import dagster as dg
from celery import Celery
from celery.signals import worker_shutdown, worker_shutting_down
from celery.worker import state
from dagster import DagsterRunStatus
from dagster._cli.api import _execute_run_command_body, _resume_run_command_body  # pyright: ignore[reportPrivateUsage] - as dagster-celery's own tasks do
from dagster._utils.interrupts import capture_interrupts
from kombu.exceptions import OperationalError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration.workers.launcher import WORK_TASK, WorkersRunLauncher
from nanobanana_pipeline.orchestration.workers.places import Places, take
from nanobanana_pipeline.orchestration.workers.pulse import beating, claim

_RUNS_A_PROCESS: Final = 100
"""Then another takes its place: whatever leaks somewhere stays small."""

_log = logging.getLogger(__name__)


def serve(instance: dg.DagsterInstance, *, processes: int, queues: Sequence[str] = (), name: str | None = None) -> int:
    """Work on runs until SIGTERM or SIGINT, and return that signal's number (0 if it ended by itself).

    Then no more runs are taken, and those under way stop as a person's stop would have them: answers on their way are
    taken in, tables are written. Another worker goes on with them. Raises `UserError` when the instance has no workers,
    or the broker won't have this one.
    """
    launcher = instance.run_launcher
    if not isinstance(launcher, WorkersRunLauncher):
        raise UserError(
            f"this instance starts runs with {type(launcher).__name__}, not on workers: "
            "use deploy/celery/dagster.yaml as the dagster.yaml in DAGSTER_HOME, on every machine alike"
        )
    app = launcher.app
    queues = queues or [launcher.default_queue]
    _assert_welcome(app, queues)
    # Before the processes are forked: each then has it already, and they share its memory.
    import_module("nanobanana_pipeline.definitions")
    if app.conf.task_acks_late:
        app.task(name=WORK_TASK)(work_on_run)
    else:
        # By its name: a function would become a method of the task.
        app.task(name=WORK_TASK, Strategy=f"{take.__module__}:{take.__name__}")(work_on_run)
        app.steps["consumer"].add(Places)  # pyright: ignore[reportOptionalSubscript] - Celery's types know of no steps
    ended_by: list[int] = []

    def stop_runs(sig: str = "", **_: Any) -> None:
        ended_by.append(int(getattr(signal, sig, 0)))
        for request in tuple(state.active_requests):
            with suppress(ProcessLookupError):
                os.kill(request.worker_pid, signal.SIGTERM)

    faults: list[int] = []
    worker_shutting_down.connect(stop_runs, weak=False)
    worker_shutdown.connect(lambda sender, **_: faults.append(sender.exitcode or 0), weak=False)
    with suppress(SystemExit):
        app.worker_main(
            [
                "worker",
                f"--concurrency={processes}",
                f"--queues={','.join(queues)}",
                f"--hostname={name or os.getpid()}@{socket.gethostname()}",
                f"--max-tasks-per-child={_RUNS_A_PROCESS}",
                "--loglevel=INFO",
                "--without-gossip",
                "--without-mingle",
            ]
        )
    if not ended_by and any(faults):
        raise UserError("the worker has ended by a fault, which its log names")
    return ended_by[0] if ended_by else 0


def _assert_welcome(app: Celery, queues: Sequence[str]) -> None:
    # One that is away is waited for. One that says no will go on doing so, and Celery says it by a stack of calls.
    connection = app.connection_for_read()
    refusals = (*connection.connection_errors, *connection.channel_errors)
    try:
        with connection:
            for name in queues:
                app.amqp.queues[name](connection.default_channel).declare()
    except (OperationalError, *connection.recoverable_connection_errors):
        pass
    except refusals as error:
        raise UserError(f"the broker refuses this worker: {error}") from None


def work_on_run(run_id: str, before: str) -> None:
    """Work on a run whose pulse is still `before`; a message that comes late, or twice, finds another."""
    with _interruptible(), dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished or run.status is DagsterRunStatus.QUEUED:
            return
        pulse = claim(instance, run_id, before)
        if pulse is None:
            _log.info("run %s: another worker has it", run_id)
            return
        with beating(instance, run_id, pulse):
            _work(instance, run_id)


def _work(instance: dg.DagsterInstance, run_id: str) -> None:
    # Again, since it may have been stopped before the claim, when nobody was there to be told.
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return
    if run.status is DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, "Stopped before its worker began.")
        return
    body = _resume_run_command_body if run.status is DagsterRunStatus.STARTED else _execute_run_command_body
    body(run_id, instance, lambda _event: None, set_exit_code_on_failure=False)


@contextmanager
def _interruptible() -> Generator[None]:
    """Let SIGTERM interrupt the run at one of Dagster's checkpoints, and nothing else.

    Celery's processes ignore SIGINT and die of SIGTERM; and Dagster, when done, leaves SIGTERM handled as SIGINT was.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with capture_interrupts():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
