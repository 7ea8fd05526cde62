"""What the engine says while it works: a line for each thing that went wrong, and none for what went well.

Python's logging carries it: as text or as JSON, to the run's standard error or to a command's log file. The ledger has
all of it too; this is for those who watch many machines, and look for a run, a shard, an item or a task in their logs.
"""

import json
import logging
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal

from nanobanana_pipeline.ledger.entries import Attempt
from nanobanana_pipeline.ledger.states import AttemptState, ItemState

LogFormat = Literal["text", "json"]

_LOGGER: Final = logging.getLogger("nanobanana.engine")
_FIELDS: Final = "nanobanana"
"""The attribute of a record that holds its fields."""
_SAID: Final[dict[AttemptState, tuple[int, str]]] = {
    AttemptState.REFUSED: (logging.WARNING, "refused"),
    AttemptState.UNKNOWN: (logging.ERROR, "of unknown outcome: it may have been billed"),
    AttemptState.OVERDUE: (logging.ERROR, "overdue: it may yet be billed"),
    AttemptState.FAILED: (logging.WARNING, "failed by the provider"),
    AttemptState.UNUSABLE: (logging.WARNING, "paid for, without a good image"),
    AttemptState.ABANDONED: (logging.WARNING, "given up, to be sent again"),
}


class Journal:
    """The lines of one run."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._reasons: set[str] = set()

    def moved(self, attempt: Attempt, to: AttemptState, facts: Mapping[str, Any]) -> None:
        """An attempt has come to another state; said of those that matter."""
        if to not in _SAID:
            return
        level, said = _SAID[to]
        kind, code, message = (facts.get(f"error_{name}") for name in ("kind", "code", "message"))
        why = " ".join(filter(None, (kind, code)))
        again = "; it is tried again" if facts.get("then") is ItemState.PENDING else ""
        words = f"{said} ({why}: {message}){again}" if why or message else f"{said}{again}"
        self._of(attempt, level, to.value, words, error_kind=kind, error_code=code, error_message=message)

    def too_late(self, attempt: Attempt, to: AttemptState, task_id: str | None) -> None:
        """An attempt would have come to another state, and was settled elsewhere meanwhile."""
        named = f" Its task is {task_id}." if task_id else ""
        words = f"{to} too late: another worker, or a person, has settled it meanwhile.{named}"
        self._of(attempt, logging.WARNING, "too_late", words, task=task_id or attempt.task_id)

    def fresh_urls(self, attempt: Attempt) -> None:
        """A result's URL has expired, and the task is asked for new ones."""
        self._of(attempt, logging.INFO, "url_expired", "its result's URL has expired; the task is asked for another")

    def deferred(self, shard: str, reason: str) -> None:
        """Items wait for a later run; each reason is said once, as it holds for thousands alike."""
        kind = reason.partition(":")[0]
        if kind not in self._reasons:
            self._reasons.add(kind)
            self._log(
                logging.WARNING, f"items of {shard} are deferred: {reason}", {"event": "deferred", "shard": shard}
            )

    def _of(self, attempt: Attempt, level: int, event: str, words: str, **more: Any) -> None:
        name = f"{attempt.catalogue}/{attempt.prompt_id}#{attempt.sample}"
        fields = {
            "event": event,
            "shard": attempt.shard,
            "item": attempt.item_id,
            "catalogue": attempt.catalogue,
            "prompt_id": attempt.prompt_id,
            "sample": attempt.sample,
            "attempt": attempt.attempt,
            "attempt_id": attempt.attempt_id,
            "task": attempt.task_id,
            **{key: None if value is None else str(value) for key, value in more.items()},
        }
        task = f", task {attempt.task_id}" if attempt.task_id else ""
        self._log(level, f"{name}, attempt {attempt.attempt} ({attempt.attempt_id[:20]}{task}): {words}", fields)

    def _log(self, level: int, message: str, fields: Mapping[str, Any]) -> None:
        _LOGGER.log(level, "%s", message, extra={_FIELDS: {"run": self._run_id, **fields}})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger and message, and the fields of the engine's lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def formatter(log_format: LogFormat) -> logging.Formatter:
    """How lines of this format are written."""
    return (
        JsonFormatter() if log_format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )


@contextmanager
def on_stderr(log_format: LogFormat) -> Generator[None]:
    """Write the engine's lines to this process's standard error, and nowhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    level, propagated = _LOGGER.level, _LOGGER.propagate
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    _LOGGER.addHandler(handler)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        _LOGGER.propagate = propagated
