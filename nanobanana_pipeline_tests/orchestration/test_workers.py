"""Runs that are handed to workers: who may work on one, who lives, and what becomes of the others."""

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.launcher import LaunchRunContext, ResumeRunContext, WorkerStatus

from nanobanana_pipeline.orchestration.instance import end_dead_runs, hand_out_again, prepare_home, sign_run
from nanobanana_pipeline.orchestration.run_tags import SENT_TAG
from nanobanana_pipeline.orchestration.workers import pulse as pulses
from nanobanana_pipeline.orchestration.workers.launcher import BrokerUnreachableError, WorkersRunLauncher
from nanobanana_pipeline.orchestration.workers.pulse import SILENCE_S, Pulse, Watch, beating, claim
from nanobanana_pipeline.orchestration.workers.worker import work_on_run
from nanobanana_pipeline_tests.servers.services import free_port

CONFIGURATION = """
run_launcher:
  module: nanobanana_pipeline.orchestration.workers.launcher
  class: WorkersRunLauncher
  config: {{broker: "{broker}"}}
run_monitoring: {{enabled: true, max_resume_run_attempts: 3}}
"""


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job
def idle() -> None:
    """A job that is over at once."""
    nothing()


def make_home(folder: Path, broker: str = "memory://") -> Path:
    """A home whose runs go to workers, by a broker in this process unless another is named."""
    folder.mkdir()
    (folder / "dagster.yaml").write_text(CONFIGURATION.format(broker=broker))
    return prepare_home(folder)


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance whose runs go to workers."""
    home = make_home(tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture
def launcher(instance: dg.DagsterInstance) -> WorkersRunLauncher:
    """Its launcher."""
    assert isinstance(instance.run_launcher, WorkersRunLauncher)
    return instance.run_launcher


@pytest.fixture
def run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A run that the queue has just let go."""
    made = instance.create_run_for_job(idle, status=DagsterRunStatus.STARTING)
    assert isinstance(made, dg.DagsterRun)
    return made


def launch(launcher: WorkersRunLauncher, run: dg.DagsterRun) -> None:
    """Hand a run out, as Dagster's queue does."""
    launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))


def now_is(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    """The run as the instance has it now."""
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def started(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    """The run, begun."""
    instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job_name=run.job_name), run_id=run.run_id
    )
    return now_is(instance, run)


def test_of_two_workers_one_gets_a_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """A broker may hand a message out twice, and two workers on one run would do all of it twice."""
    mine = claim(instance, run.run_id, "")
    assert mine is not None
    assert claim(instance, run.run_id, "") is None
    assert Pulse.read(instance, run.run_id) == mine
    # Who comes for a dead one gets it once as well.
    assert claim(instance, run.run_id, mine.text) is not None
    assert claim(instance, run.run_id, mine.text) is None


def test_a_pulse_beats_and_ends_with_the_run(
    instance: dg.DagsterInstance, run: dg.DagsterRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left behind, each run's pulse would stay in the database for good."""
    monkeypatch.setattr(pulses, "BEAT_S", 0.01)
    first = claim(instance, run.run_id, "")
    assert first is not None
    with beating(instance, run.run_id, first):
        while (last := Pulse.read(instance, run.run_id)) is None or last.beat < 2:
            pass
        monkeypatch.setattr(pulses, "BEAT_S", 600.0)  # the run's end and the pulse's are not a beat apart
        instance.report_run_failed(now_is(instance, run))
    assert Pulse.read(instance, run.run_id) is None


def test_a_worker_that_ends_before_its_run_says_so(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Told to end, it leaves the run to another at once, and not after a minute's silence."""
    first = claim(instance, run.run_id, "")
    assert first is not None
    with beating(instance, run.run_id, first):
        pass
    last = Pulse.read(instance, run.run_id)
    assert last is not None
    assert last == replace(first, beat=last.beat, at=last.at, left=True)
    assert last.surely_dead


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set when this process is told to end; pulses are quick meanwhile."""
    monkeypatch.setattr(pulses, "BEAT_S", 0.01)
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    yield told
    signal.signal(signal.SIGTERM, before)


def test_a_stop_reaches_the_worker_by_the_runs_own_mark(
    instance: dg.DagsterInstance, run: dg.DagsterRun, told: threading.Event
) -> None:
    """No broker is needed for it, and no worker misses it because it was not listening."""
    first = claim(instance, run.run_id, "")
    assert first is not None
    with beating(instance, run.run_id, first):
        assert instance.run_launcher.terminate(run.run_id)
        assert now_is(instance, run).status is DagsterRunStatus.CANCELING
        assert told.wait(30)


def test_a_run_that_somebody_else_has_ended_is_let_go(
    instance: dg.DagsterInstance, run: dg.DagsterRun, told: threading.Event
) -> None:
    """A person marked it as over without a word to the worker, which would go on."""
    first = claim(instance, run.run_id, "")
    assert first is not None
    with beating(instance, run.run_id, first):
        instance.report_run_canceled(now_is(instance, run))
        assert told.wait(30)


def test_a_run_that_nobody_has_taken_is_stopped_at_once(
    instance: dg.DagsterInstance, launcher: WorkersRunLauncher, run: dg.DagsterRun
) -> None:
    """Its message is still with the broker; whoever gets it finds the run over."""
    launch(launcher, run)
    assert launcher.terminate(run.run_id)
    assert now_is(instance, run).status is DagsterRunStatus.CANCELED
    work_on_run(run.run_id, "")
    assert Pulse.read(instance, run.run_id) is None
    assert now_is(instance, run).status is DagsterRunStatus.CANCELED


def test_a_dead_worker_is_told_from_a_busy_one(
    instance: dg.DagsterInstance, launcher: WorkersRunLauncher, run: dg.DagsterRun
) -> None:
    """Dagster asks the launcher, and takes the run away from whom it says is dead."""
    launch(launcher, run)
    run = started(instance, now_is(instance, run))
    first = claim(instance, run.run_id, "")
    assert first is not None
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    pulses._swap(instance, run.run_id, first.text, replace(first, left=True).text)
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED
    launcher.resume_run(ResumeRunContext(dagster_run=run, workspace=None, resume_attempt_number=1))
    # Nobody has it yet: handed on again each time that it is looked at, it would soon have no more tries.
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_silence_is_told_by_the_watchers_clock() -> None:
    """Hosts' clocks differ. A watcher that was away itself (a lost database, say) has heard nobody."""
    watch = Watch()
    assert watch.silence_s("run", "1", now=1000.0) == 0.0
    assert watch.silence_s("run", "1", now=1010.0) == 10.0
    assert watch.silence_s("run", "1", now=2000.0) < SILENCE_S
    assert watch.silence_s("run", "2", now=2010.0) == 0.0
    silences = [watch.silence_s("run", "2", now=float(second)) for second in range(2020, 2071, 10)]
    assert silences[-1] >= SILENCE_S


def test_what_no_worker_takes_is_handed_out_again(
    instance: dg.DagsterInstance, launcher: WorkersRunLauncher, run: dg.DagsterRun
) -> None:
    """A broker that lost its memory, or a worker that died with the message in its hands, must not leave it lying."""
    launch(launcher, run)
    sent = now_is(instance, run)
    at = float(sent.tags[SENT_TAG].split()[0])
    assert hand_out_again(instance) == []
    assert not launcher.send_again(sent, now=at + 30)
    assert launcher.send_again(sent, now=at + 61)
    # Each time it waits twice as long: workers may only be busy.
    again = now_is(instance, run)
    assert not launcher.send_again(again, now=float(again.tags[SENT_TAG].split()[0]) + 61)
    taken = claim(instance, run.run_id, "")
    assert taken is not None
    assert not launcher.send_again(again, now=at + 200)
    assert launcher.send_again(again, now=at + 1000)


def test_a_run_of_this_machine_that_a_worker_had_is_not_ended_but_resumed(
    instance: dg.DagsterInstance, launcher: WorkersRunLauncher, run: dg.DagsterRun
) -> None:
    """Otherwise a killed worker's runs would fail when the daemon is on its machine, and go on when it is not."""
    launch(launcher, run)
    sign_run(instance, run)
    dead = json.loads(now_is(instance, run).tags[".dagster/nanobanana_worker"]) | {"pid": 2**22 + 1}
    instance.add_run_tags(run.run_id, {".dagster/nanobanana_worker": json.dumps(dead)})
    assert end_dead_runs(instance) == []


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:{}/0", "amqp://127.0.0.1:{}//"])
def test_a_broker_that_is_away_does_not_fail_the_queue(tmp_path: Path, broker: str) -> None:
    """Dagster's queue tries runs again for errors of one family, and fails them for any other."""
    home = make_home(tmp_path / "elsewhere", broker.format(free_port()))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        made = instance.create_run_for_job(idle, status=DagsterRunStatus.STARTING)
        assert isinstance(made, dg.DagsterRun)
        assert isinstance(instance.run_launcher, WorkersRunLauncher)
        launcher = instance.run_launcher
        with pytest.raises(BrokerUnreachableError, match="which waits for it"):
            launch(launcher, made)
        # Nor does it use up the tries of a run that has to be carried on.
        begun = started(instance, now_is(instance, made))
        launcher.resume_run(ResumeRunContext(dagster_run=begun, workspace=None, resume_attempt_number=1))
        assert launcher.check_run_worker_health(begun).status is WorkerStatus.RUNNING


@pytest.mark.parametrize(
    ("broker", "tags", "expected"),
    [
        ("memory://", {}, 4),
        ("memory://", {"dagster/priority": "3"}, 7),
        ("memory://", {"dagster/priority": "-9"}, 0),
        ("memory://", {"dagster/priority": "high"}, 4),
        ("memory://", {"dagster-celery/run_priority": "9"}, 9),
        ("amqp://127.0.0.1:1//", {"dagster/priority": "3"}, 7),
        ("redis://127.0.0.1:1/0", {}, 5),
        ("redis://127.0.0.1:1/0", {"dagster/priority": "3"}, 2),
    ],
)
def test_urgent_runs_overtake_others(
    instance: dg.DagsterInstance, broker: str, tags: dict[str, str], expected: int
) -> None:
    """RabbitMQ counts up to the most urgent, Redis down to it."""
    made = instance.create_run_for_job(idle, tags=tags)
    assert isinstance(made, dg.DagsterRun)
    assert WorkersRunLauncher(broker)._priority(made) == expected


def test_signals_are_as_before_when_a_run_is_over(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Dagster leaves SIGTERM as SIGINT was: ignored, in a worker's process, which then could not be ended."""
    instance.report_run_canceled(now_is(instance, run))
    before = [signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_DFL)]
    try:
        work_on_run(run.run_id, "")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
