"""Dagster's own state: its home folder, made ready before anything runs, and what killed runs leave behind in it.

What is Dagster's and outlives a process belongs here. Definitions, and how the processes are started, do not.
"""

import json
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from dagster import DagsterError, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from filelock import FileLock, Timeout
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError
from yaml import YAMLError

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger.leases import ProcessIdentity
from nanobanana_pipeline.orchestration.run_tags import ENDED_TAG, SENT_TAG

# Dagster doesn't show tags of this prefix to people, who have no use for a boot id.
WORKER_TAG = ".dagster/nanobanana_worker"

_UNFINISHED = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
_PREPARED = ".prepared"
_DATABASES = ("history", "schedules")
_LOCK_TIMEOUT_S = 120
_UNSET = re.compile(r'environment variable "?(\w+)"? which is not set')

_DAGSTER_YAML = """\
# Written by nanobanana_pipeline when this folder was made; yours to change from now on. A restart picks changes up.
# Variants for PostgreSQL and for many machines are in the project's deploy/ folder.

telemetry:
  enabled: false # nothing is sent to anyone
nux:
  enabled: false # no dialogue at the first visit

concurrency:
  pools:
    # How many shards generate at once, for the pool nanobanana_api too; each is a process of its own. The
    # Concurrency page of the user interface can set another limit for one pool.
    default_limit: 4
    # A run waits in the queue, not in a process of its own, and a killed one can't leave a slot taken.
    granularity: run
  runs:
    # More than the pool, so that catalogue and report runs need not wait for generation.
    max_concurrent_runs: 8

run_queue:
  dequeue_interval_seconds: 2
  # A code server that is just being reloaded doesn't fail the runs in the queue.
  max_user_code_failure_retries: 3
  user_code_failure_retry_delay: 10

run_monitoring:
  enabled: true
  poll_interval_seconds: 30
  start_timeout_seconds: 180
  # A terminated run first takes in the answers still in the air and writes its tables: longer than that takes.
  cancel_timeout_seconds: 300
  free_slots_after_run_end_seconds: 60

# Sensors tick all the time: old ticks go, or they fill the database.
retention:
  sensor:
    purge_after_days:
      skipped: 1
      success: 30
      failure: 30
      started: 30
  schedule:
    purge_after_days: 90
"""


def prepare_home(path: Path | str) -> Path:
    """Make `path` a DAGSTER_HOME, once, and return it absolute. A dagster.yaml that is there already stays as it is.

    Two Dagster processes that start at once on an empty home can break its SQLite databases for good ("alembic_version
    has more than one head"), so everything that starts Dagster calls this first. Raises `UserError` when the folder
    can't be used, or its dagster.yaml can't.
    """
    home = Path(path).expanduser().absolute()
    if (home / _PREPARED).exists():
        return home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with opening(home), FileLock(home / ".prepare.lock", timeout=_LOCK_TIMEOUT_S):
            if not (home / _PREPARED).exists():
                _prepare(home)
    except Timeout:
        raise UserError(
            f"DAGSTER_HOME {home} has been prepared by another process for {_LOCK_TIMEOUT_S} seconds: "
            "end that process, or choose another DAGSTER_HOME"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"DAGSTER_HOME {home} can't be used ({reason}): choose a local folder that is yours") from None
    return home


@contextmanager
def opening(home: Path) -> Generator[None]:
    """Say in one line why Dagster can't open the instance of `home`."""
    try:
        yield
    except (DagsterError, SQLAlchemyError, YAMLError) as error:
        file = home / "dagster.yaml"
        unset = _UNSET.search(str(error))
        if unset:
            raise UserError(f"{file} takes a value from the environment variable {unset[1]}: set it") from None
        reason = str(error).partition("\n")[0]
        raise UserError(f"Dagster can't start with {file} ({reason}): correct that file") from None


def _prepare(home: Path) -> None:
    """Write the configuration and make the databases. The caller holds the lock."""
    configuration = home / "dagster.yaml"
    if not configuration.exists():
        draft = home / ".dagster.yaml.new"
        draft.write_text(_DAGSTER_YAML)
        draft.replace(configuration)
    if not any((home / name).exists() for name in _DATABASES):
        _make_databases(home)
    # Opens every storage: makes what an external database lacks, and shows now, not in a daemon, that it works.
    with DagsterInstance.from_config(str(home)) as instance:
        _check_driver(getattr(instance.event_log_storage, "postgres_url", None))
    (home / _PREPARED).touch()


def _check_driver(url: str | None) -> None:
    """With psycopg 3, SQLAlchemy's choice for a plain `postgresql://`, every run dies at its first event."""
    if url is not None and make_url(url).get_driver_name() != "psycopg2":
        raise UserError(
            f"Dagster's storage {make_url(url).render_as_string(hide_password=True)} would be opened with "
            "another driver than dagster-postgres knows: begin its URL with postgresql+psycopg2://"
        )


def _make_databases(home: Path) -> None:
    # Made aside and moved in whole: a database whose making was cut short looks to Dagster like one of an old version.
    for left_behind in home.glob(".preparing-*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    aside = Path(mkdtemp(prefix=".preparing-", dir=home))
    shutil.copy(home / "dagster.yaml", aside)
    DagsterInstance.from_config(str(aside)).dispose()
    for name in _DATABASES:
        if (aside / name).exists():
            (aside / name).replace(home / name)
    shutil.rmtree(aside, ignore_errors=True)


def sign_run(instance: DagsterInstance, run: DagsterRun) -> None:
    """Note on the run which process works on it, so that another process can tell when that one has died.

    Dagster's default launcher can't: a run whose process and code server are killed stays "started" for good.
    """
    tags = {WORKER_TAG: json.dumps({"run_id": run.run_id, **asdict(ProcessIdentity.current())})}
    if ENDED_TAG in run.tags:
        # Its parent's, or its own of an earlier life: a worker may die between the note and the end.
        tags[ENDED_TAG] = ""
    instance.add_run_tags(run.run_id, tags)


def end_dead_runs(instance: DagsterInstance) -> list[str]:
    """Mark unfinished runs as ended whose process is known to be dead; returns their run ids.

    Only signed runs of this machine can be judged; all others are left alone. Those that were handed to workers are
    their launcher's to look after: another worker goes on with them.
    """
    unfinished = instance.get_runs(filters=RunsFilter(statuses=_UNFINISHED))
    dead = [run.run_id for run in unfinished if SENT_TAG not in run.tags and _worker_is_dead(run)]
    ended: list[str] = []
    # Asked again: a run may have ended well, and its process with it, since it was looked up.
    for run in instance.get_runs(filters=RunsFilter(run_ids=dead, statuses=_UNFINISHED)) if dead else ():
        message = "The process of this run is gone (killed, or the machine went down)."
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message)
        else:
            instance.report_run_failed(run, message)
        ended.append(run.run_id)
    return ended


def hand_out_again(instance: DagsterInstance) -> list[str]:
    """Hand runs to the workers again that none of them has taken for long; returns their run ids.

    A broker may lose a message, and a worker may die with one in its hands. Other launchers start runs themselves.
    """
    send_again = getattr(instance.run_launcher, "send_again", None)
    if send_again is None:
        return []
    starting = instance.get_runs(filters=RunsFilter(statuses=[DagsterRunStatus.STARTING]))
    return [run.run_id for run in starting if send_again(run, now=time.time())]


def free_dead_slots(instance: DagsterInstance) -> list[str]:
    """End dead runs and free every pool slot held by a run that is over; returns the ids of the runs freed or ended.

    A run killed with SIGKILL frees nothing itself, and with pools that count operations its slot would stay taken.
    """
    freed = set(end_dead_runs(instance))
    storage = instance.event_log_storage
    for run_id in _runs_with_slots(instance):
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
            freed.add(run_id)
    return sorted(freed)


def _runs_with_slots(instance: DagsterInstance) -> set[str]:
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return set()
    pools = storage.get_concurrency_infos(sorted(storage.get_concurrency_keys())).values()
    claimed = {slot.run_id for pool in pools for slot in pool.claimed_slots}
    return claimed | storage.get_concurrency_run_ids()


def _worker_is_dead(run: DagsterRun) -> bool:
    signature: dict[str, Any] = json.loads(run.tags.get(WORKER_TAG, "{}"))
    # A re-execution begins with its parent's, whose process is gone: it was ended before it could sign itself.
    return signature.pop("run_id", None) == run.run_id and ProcessIdentity(**signature).known_dead()
