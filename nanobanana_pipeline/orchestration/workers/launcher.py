"""The launcher that hands runs to workers on other machines, by way of a broker (Celery over RabbitMQ or Redis).

Named in `dagster.yaml`, so it works for every run of the instance. It stands on dagster-celery's launcher, of which it
replaces what does not hold up there (0.29.27): its resume task is sent under an argument that the task does not know;
its health check takes a killed worker for alive, and one whose broker forgot for dead; its terminate is a message to
the workers alive at that moment, and does not mark the run; and a broker that is away fails every run in the queue.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import dagster as dg
from celery import Celery
from dagster import DagsterRunStatus
from dagster._config import UserConfigSchema
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, ResumeRunContext, WorkerStatus
from dagster._serdes import ConfigurableClassData
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_QUEUE_TAG, DAGSTER_CELERY_RUN_PRIORITY_TAG, DAGSTER_CELERY_TASK_ID_TAG
from kombu.exceptions import OperationalError
from typing_extensions import override

from nanobanana_pipeline.orchestration.run_tags import SENT_TAG
from nanobanana_pipeline.orchestration.workers.pulse import SILENCE_S, Pulse, Watch

WORK_TASK: Final = "nanobanana.work_on_run"
"""The one task there is: work on a run, if its pulse is (still) the one named."""
DEFAULT_QUEUE: Final = "nanobanana"

_PRIORITY_TAG: Final = "dagster/priority"
_HIGHEST: Final = 9
_MIDDLE: Final = 4
_SEND_AGAIN_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 1800.0
_SILENT_AT_THE_START_S: Final = 300.0

# What holds for every broker. A worker takes no more messages than it has processes, so no run waits behind another
# one's hours while a worker elsewhere has nothing to do.
_CELERY: Final[dict[str, Any]] = {
    "task_ignore_result": True,
    "worker_prefetch_multiplier": 1,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_heartbeat": 30,
    "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5},
}
_REDIS: Final[dict[str, Any]] = {
    # Acknowledged when the run is over: until then it takes up one of the messages that a worker may have.
    "task_acks_late": True,
    "broker_transport_options": {
        # A message that was not acknowledged for so long is handed out again. Whoever gets it finds the run taken.
        "visibility_timeout": 24 * 3600,
        "queue_order_strategy": "priority",
        "priority_steps": list(range(10)),
        "socket_keepalive": True,
        "socket_timeout": 30,
    },
}
_RABBITMQ: Final[dict[str, Any]] = {
    # Acknowledged as soon as a process has it. RabbitMQ closes the channel of who holds a message for 30 minutes, and
    # Celery's worker ends by that. That it takes no more than it has processes is then for `places.py`.
    "task_acks_late": False,
    # A broker that takes the connection and then says nothing must not hold up Dagster's queue for good.
    "broker_transport_options": {"read_timeout": 15, "write_timeout": 15},
}
# Without confirmation a message is lost, and nobody told, when the connection breaks just behind it.
_CONFIRMED: Final[dict[str, Any]] = {"confirm_publish": True}


class BrokerUnreachableError(DagsterUserCodeUnreachableError):
    """The broker is away. Of this family, as Dagster's queue tries those again and fails a run for any other."""


class WorkersRunLauncher(CeleryRunLauncher):
    """Hands runs to `nanobanana worker` processes, wherever they are, and knows by their pulse whether they live."""

    def __init__(
        self,
        broker: str,
        default_queue: str = DEFAULT_QUEUE,
        dead_after_seconds: int = SILENCE_S,
        config_source: dict[str, Any] | None = None,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        is_redis = broker.startswith(("redis://", "rediss://"))
        known = _CELERY | (_REDIS if is_redis else _RABBITMQ)
        super().__init__(
            default_queue=default_queue,
            broker=broker,
            backend="disabled",
            include=[],
            config_source=known | (config_source or {}),
            inst_data=inst_data,
        )
        self._low_is_urgent = is_redis
        self._dead_after_s = dead_after_seconds
        self._watch = Watch()
        self._resumed: dict[str, tuple[str, float]] = {}

    @property
    def app(self) -> Celery:
        """The Celery application of this broker, for the worker."""
        return self.celery

    # --- handing runs out --------------------------------------------------------------------------------------------

    @override
    def launch_run(self, context: LaunchRunContext) -> None:
        """Hand a new run to whichever worker takes it first."""
        self._send(context.dagster_run, "")

    @override
    def resume_run(self, context: ResumeRunContext) -> None:
        """Hand a run whose worker is dead to another."""
        pulse = Pulse.read(self._instance, context.dagster_run.run_id)
        self._hand_on(context.dagster_run, "" if pulse is None else pulse.text)

    def _hand_on(self, run: dg.DagsterRun, pulse: str) -> None:
        # Remembered whether or not the broker is there: failing here would use up the run's tries while it is away.
        self._resumed[run.run_id] = (pulse, time.monotonic())
        with suppress(BrokerUnreachableError):
            self._send(run, pulse)

    def send_again(self, run: dg.DagsterRun, *, now: float) -> bool:
        """Hand a starting run to the broker once more when no worker has taken it for long; whether it was sent.

        It may wait for a worker that is free, or the broker may have lost it: the second message then finds it taken.
        """
        at, _, times = run.tags.get(SENT_TAG, "").partition(" ")
        if not at or now < float(at) + min(_SEND_AGAIN_S * 2 ** int(times), _LONGEST_PAUSE_S):
            return False
        pulse = Pulse.read(self._instance, run.run_id)
        # By two hosts' clocks, hence the longer time: who looks here doesn't look long enough to see it beat.
        if pulse is not None and not pulse.surely_dead and now < pulse.at + _SILENT_AT_THE_START_S:
            return False
        try:
            self._send(run, "" if pulse is None else pulse.text, times=int(times) + 1)
        except BrokerUnreachableError:
            return False
        return True

    def _send(self, run: dg.DagsterRun, pulse: str, *, times: int = 0) -> None:
        queue, task = run.tags.get(DAGSTER_CELERY_QUEUE_TAG, self.default_queue), str(uuid4())
        # Before it is sent: whoever takes it must know where it came from.
        self._instance.add_run_tags(
            run.run_id, {DAGSTER_CELERY_TASK_ID_TAG: task, SENT_TAG: f"{time.time():.0f} {times}"}
        )
        # A connection of its own: one that lay idle for hours may be dead, and look as if it were not.
        connection = self.celery.connection_for_write(transport_options=_CONFIRMED)
        errors = (OperationalError, *connection.connection_errors, *connection.channel_errors)
        try:
            with connection:
                self.celery.send_task(
                    WORK_TASK,
                    args=(run.run_id, pulse),
                    queue=queue,
                    priority=self._priority(run),
                    task_id=task,
                    connection=connection,
                )
        except errors as error:
            raise BrokerUnreachableError(
                f"the broker doesn't take the run, which waits for it ({str(error).partition(chr(10))[0]})"
            ) from None
        self._instance.report_engine_event(f"Handed to the workers of queue {queue}.", run, cls=self.__class__)

    def _priority(self, run: dg.DagsterRun) -> int:
        """The message's priority, 0 to 9: the run's own, or Dagster's; each broker counts from its own end."""
        try:
            priority = int(
                run.tags.get(DAGSTER_CELERY_RUN_PRIORITY_TAG) or _MIDDLE + int(run.tags.get(_PRIORITY_TAG, "0"))
            )
        except ValueError:
            priority = _MIDDLE
        priority = min(max(priority, 0), _HIGHEST)
        return _HIGHEST - priority if self._low_is_urgent else priority

    # --- looking after them ------------------------------------------------------------------------------------------

    @override
    def terminate(self, run_id: str) -> bool:
        """Stop a run: its worker sees the mark at its next beat, takes in what is on its way, and ends it."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if run.status is not DagsterRunStatus.CANCELING:
            self._instance.report_run_canceling(run)
        pulse = Pulse.read(self._instance, run_id)
        if pulse is None:
            # Nobody has it yet. Who takes it now looks at the mark after its claim, and leaves it alone.
            self._instance.report_run_canceled(run, "Stopped before any worker took it.")
        elif pulse.surely_dead:
            self._instance.report_run_canceled(run, "Stopped; its worker was dead already.")
        return True

    @override
    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether a started run's worker lives, by its pulse."""
        if SENT_TAG not in run.tags:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "it was not started by this launcher")
        pulse = Pulse.read(self._instance, run.run_id)
        text = "" if pulse is None else pulse.text
        silent_s = self._watch.silence_s(run.run_id, text)
        asked = self._resumed.get(run.run_id)
        if asked is not None and asked[0] == text:
            # Handed on, and nobody has taken it yet: workers are busy, or the message is lost.
            if time.monotonic() - asked[1] >= _SEND_AGAIN_S:
                self._hand_on(run, text)
            return CheckRunHealthResult(WorkerStatus.RUNNING, "waits for a worker to go on with it")
        if pulse is not None and pulse.left:
            return CheckRunHealthResult(WorkerStatus.FAILED, "its worker was stopped, and leaves it to another")
        if silent_s >= self._dead_after_s or (pulse is not None and pulse.surely_dead):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"its worker has not been heard for {silent_s:.0f} s")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    @override
    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """Who worked on a run."""
        pulse = Pulse.read(self._instance, run.run_id)
        return None if pulse is None else f"its worker: process {pulse.worker.pid} on {pulse.worker.host}"

    # --- configuration -----------------------------------------------------------------------------------------------

    @classmethod
    @override
    def config_type(cls) -> UserConfigSchema:
        """The fields of `run_launcher.config` in dagster.yaml."""
        return {
            "broker": dg.Field(dg.StringSource, description="The broker's URL: amqp://…, or redis://…"),
            "default_queue": dg.Field(
                dg.StringSource,
                is_required=False,
                default_value=DEFAULT_QUEUE,
                description=f"The queue of runs that have no tag {DAGSTER_CELERY_QUEUE_TAG}.",
            ),
            "dead_after_seconds": dg.Field(
                dg.IntSource,
                is_required=False,
                default_value=SILENCE_S,
                description="A worker that was not heard for so long is taken for dead, and another goes on.",
            ),
            "config_source": dg.Field(
                dg.Noneable(dg.Permissive()), is_required=False, description="Further settings of Celery."
            ),
        }

    @classmethod
    @override
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "WorkersRunLauncher":
        """Made by Dagster from dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)
