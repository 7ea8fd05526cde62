"""A worker in a process of its own, behind each of the brokers: what is taken, what waits, and what a loss does."""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.launcher import LaunchRunContext, ResumeRunContext, WorkerStatus
from kombu.connection import Connection
from kombu.entity import Queue

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.orchestration.instance import prepare_home
from nanobanana_pipeline.orchestration.workers.launcher import BrokerUnreachableError, WorkersRunLauncher
from nanobanana_pipeline.orchestration.workers.worker import serve
from nanobanana_pipeline_tests.orchestration.patient_job import patient
from nanobanana_pipeline_tests.servers.many_machines import ROOT, Program
from nanobanana_pipeline_tests.servers.services import Redis
from nanobanana_pipeline_tests.servers.shared_broker import SharedBroker, answers, rabbitmq_url

CONFIGURATION = """
run_launcher:
  module: nanobanana_pipeline.orchestration.workers.launcher
  class: WorkersRunLauncher
  config: {{broker: "{url}", default_queue: "{queue}"}}
run_monitoring: {{enabled: true}}
"""
# As it is started anywhere, but with a pulse that a test need not wait for.
WORKER = """
import sys
from nanobanana_pipeline.orchestration.workers import pulse
pulse.BEAT_S = 0.1
from nanobanana_pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Workshop:
    """An instance, its broker, and one worker, which works on one run at a time."""

    folder: Path
    instance: dg.DagsterInstance
    broker: SharedBroker
    worker: Program

    @property
    def launcher(self) -> WorkersRunLauncher:
        """The instance's."""
        assert isinstance(self.instance.run_launcher, WorkersRunLauncher)
        return self.instance.run_launcher

    def make(self, tags: dict[str, str] | None = None) -> dg.DagsterRun:
        """A run that the queue has just let go."""
        run = self.instance.create_run_for_job(
            patient,
            tags={"folder": str(self.folder)} | (tags or {}),
            status=DagsterRunStatus.STARTING,
            job_code_origin=dg.reconstructable(patient).get_python_origin(),
        )
        assert isinstance(run, dg.DagsterRun)
        return run

    def launch(self, run: dg.DagsterRun) -> str:
        """Hand it out, as Dagster's queue does."""
        self.launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        return run.run_id

    def now(self, run_id: str) -> dg.DagsterRun:
        """The run as the instance has it now."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    @property
    def begun(self) -> list[str]:
        """The runs in the order in which they began."""
        path = self.folder / "begun"
        return path.read_text().split() if path.exists() else []

    @property
    def received(self) -> Counter[str]:
        """How often the worker was given each message."""
        return Counter(re.findall(r"\[([^]]+)\] received", self.worker.log.read_text()))

    def let_go(self, *run_ids: str) -> None:
        """Let runs come to their end."""
        for run_id in run_ids:
            (self.folder / run_id).touch()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds."""
        ends = time.monotonic() + 200
        while not condition():
            assert self.worker.alive, self.worker.log.read_text()[-3000:]
            assert time.monotonic() < ends, self.worker.log.read_text()[-3000:]
            time.sleep(0.02)

    def wait_for_status(self, status: DagsterRunStatus, *run_ids: str) -> None:
        """Until all of these runs have it."""
        self.wait_for(lambda: all(self.now(run_id).status is status for run_id in run_ids))


@pytest.fixture(scope="module")
def rabbitmq(require: Callable[[str, bool, str], None]) -> str:
    """The URL of a RabbitMQ, where others may be too."""
    url = rabbitmq_url()
    require("rabbitmq", answers(url), "set NANOBANANA_TEST_RABBITMQ, or install it, e.g. apt install rabbitmq-server")
    return url


def make_home(folder: Path, broker: SharedBroker) -> Path:
    """A home whose runs go by the broker."""
    folder.mkdir()
    (folder / "dagster.yaml").write_text(CONFIGURATION.format(url=broker.url, queue=broker.queue))
    return prepare_home(folder)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def workshop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, bool, str], None]
) -> Iterator[Workshop]:
    """One for all tests of a broker: a worker takes seconds to start."""
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if request.param == "redis":
            require("redis", Redis.found(), "install it, e.g. apt install redis-server")
            url = stack.enter_context(Redis(folder / "redis")).url
        else:
            url = request.getfixturevalue("rabbitmq")
        broker = stack.enter_context(SharedBroker(url))
        home = make_home(folder / "home", broker)
        environment = {
            "DAGSTER_HOME": str(home),
            "NANOBANANA_BASE_URL": "http://127.0.0.1:9",
            "NANOBANANA_OUTPUT": str(folder / "output"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", WORKER, "worker", "--processes", "1"]
        worker = Program("worker", command, folder, environment)
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        stack.callback(worker.kill)
        worker.start()
        yield Workshop(folder, instance, broker, worker)


def test_what_waits_is_taken_by_urgency_and_once(workshop: Workshop) -> None:
    """A worker that is busy takes no message: another may be free, and a more urgent one may come."""
    before = len(workshop.begun)
    first, low, high = (workshop.make({"dagster/priority": urgency}) for urgency in ("0", "-2", "3"))
    workshop.launch(first)
    workshop.wait_for(lambda: len(workshop.begun) > before)
    # Each message comes twice, as after a lost connection or a minute's waiting.
    for run in (low, first, high, low, high):
        workshop.launch(workshop.now(run.run_id))
    runs = [run.run_id for run in (first, high, low)]
    workshop.let_go(*runs)
    workshop.wait_for_status(DagsterRunStatus.SUCCESS, *runs)
    assert workshop.begun[before:] == runs


def test_a_run_at_work_needs_no_broker(workshop: Workshop) -> None:
    """Nor does a stop. What is handed out meanwhile waits, with one line, and is taken when the broker is back."""
    before = len(workshop.begun)
    first, second = workshop.launch(workshop.make()), workshop.make()
    workshop.wait_for(lambda: len(workshop.begun) > before)
    workshop.broker.stop()
    with pytest.raises(BrokerUnreachableError, match="which waits for it") as caught:
        workshop.launch(second)
    assert "\n" not in str(caught.value)
    assert workshop.launcher.terminate(first)
    workshop.wait_for_status(DagsterRunStatus.CANCELED, first)
    workshop.broker.start()
    workshop.launch(second)
    workshop.let_go(second.run_id)
    workshop.wait_for_status(DagsterRunStatus.SUCCESS, second.run_id)
    assert workshop.begun[before:] == [first, second.run_id]


def test_a_killed_workers_run_is_carried_on_once(workshop: Workshop) -> None:
    """By the launcher's word, not the broker's: whoever holds a message of RabbitMQ's for half an hour is cut off."""
    before, earlier = len(workshop.begun), workshop.received
    first, second = workshop.launch(workshop.make()), workshop.make()
    workshop.wait_for(lambda: len(workshop.begun) > before)
    workshop.launch(second)
    workshop.worker.kill()
    workshop.worker.start()
    run = workshop.now(first)
    # The process that worked on it may outlive the one that started it by a moment.
    workshop.wait_for(lambda: workshop.launcher.check_run_worker_health(run).status is WorkerStatus.FAILED)
    workshop.launcher.resume_run(ResumeRunContext(dagster_run=run, workspace=None, resume_attempt_number=1))
    workshop.let_go(first, second.run_id)
    workshop.wait_for_status(DagsterRunStatus.SUCCESS, first, second.run_id)
    assert sorted(workshop.begun[before:]) == sorted([first, first, second.run_id])
    # The killed one's own message did not come again: it was acknowledged as the run began.
    assert set((workshop.received - earlier).values()) == {1}


def test_a_broker_that_refuses_is_named_in_one_line(rabbitmq: str, tmp_path: Path) -> None:
    """No waiting mends it, and Celery's own words for it are a stack of calls."""
    with SharedBroker(rabbitmq) as broker, Connection(rabbitmq) as connection:
        Queue(broker.queue)(connection.default_channel).declare()  # one that knows no priorities
        with dg.DagsterInstance.from_config(str(make_home(tmp_path / "home", broker))) as instance:
            run = instance.create_run_for_job(patient, status=DagsterRunStatus.STARTING)
            assert isinstance(run, dg.DagsterRun)
            with pytest.raises(BrokerUnreachableError, match=r"^[^\n]*x-max-priority[^\n]*$"):
                instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
            with pytest.raises(UserError, match=r"^the broker refuses this worker: [^\n]*x-max-priority[^\n]*$"):
                serve(instance, processes=1)
