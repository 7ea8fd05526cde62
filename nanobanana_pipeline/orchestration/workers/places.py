"""A worker's places: it takes a message while a process is free, and none while all of them are at work.

Celery reaches that by late acknowledgement: as many messages unacknowledged as there are processes. RabbitMQ lets
nobody hold a message for more than half an hour: it closes the channel, and the worker ends. So here messages are
acknowledged early, and a worker that is full stops listening to its queues; what it gets all the same, it gives back.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from celery import Celery, Task, bootsteps
from celery.worker import state
from celery.worker.strategy import default
from kombu.message import Message
from typing_extensions import override

Consumer: TypeAlias = Any
"""Celery's own, whose steps give it most of its attributes as they start."""

_LOOK_S: Final = 0.2
"""How often a full worker looks whether it has a place again."""

_log = logging.getLogger(__name__)


class Places(bootsteps.StartStopStep):
    """Listens again when there is a place; a step of Celery's consumer, begun anew with each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    @override
    def start(self, parent: Consumer) -> None:
        """Look from time to time."""
        self._timer = parent.timer.call_repeatedly(_LOOK_S, _listen_or_not, (parent,))

    @override
    def stop(self, parent: Consumer) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()


def take(task: Task, app: Celery, consumer: Consumer) -> Callable[..., None]:
    """What is done with each message, as Celery's `Strategy` of a task: go by its own, within the places there are."""
    accept = default(task, app, consumer)

    def received(message: Message, *arguments: Any, **options: Any) -> None:
        if _full(consumer):
            message.reject_log_error(_log, consumer.connection_errors, requeue=True)
        else:
            accept(message, *arguments, **options)
        # Soon, and not here: a message may come while an answer to one of these very calls is waited for.
        consumer.call_soon(_listen_or_not, consumer)

    return received


def _listen_or_not(consumer: Consumer) -> None:
    if consumer.blueprint.state != bootsteps.RUN or not consumer.task_consumer:
        return
    if _full(consumer):
        consumer.task_consumer.cancel()
    else:
        consumer.task_consumer.consume()  # does nothing for queues that it listens to


def _full(consumer: Consumer) -> bool:
    return len({*state.reserved_requests, *state.active_requests}) >= consumer.pool.num_processes
