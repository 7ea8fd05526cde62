"""The whole set-up of many machines on one, started to be tried out by hand: nothing of it is left, however it ends."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nanobanana_pipeline_tests.e2e.command import ROOT
from nanobanana_pipeline_tests.servers.services import Postgres, Redis

pytest.importorskip("dagster_celery", reason="the extra `celery` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Starts it, tells it to end by some signals once a process of it is there, and says what it has left behind.
DRIVER = """
import subprocess, sys, time
from pathlib import Path
from nanobanana_pipeline_tests.servers.services import adopt_orphans, children

def descendants(pids):
    for pid in pids:
        yield pid
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from descendants(map(int, path.read_text().split()))

def shown(pid):
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\\0", " ")

def is_there(words):
    try:
        return any(words in shown(pid) for pid in descendants(children()))
    except OSError:
        return False

awaited, *numbers = sys.argv[1:]
adopt_orphans()
command = subprocess.Popen([sys.executable, "-m", "nanobanana_pipeline_tests.servers.many_machines", "--workers", "1"])
while not is_there(awaited) and command.poll() is None:
    time.sleep(0.02)
for number in numbers:
    command.send_signal(int(number))
    time.sleep(0.2)
code = command.wait(300)
print("ended with", code, "and left", [shown(pid) for pid in children()], flush=True)
"""


@pytest.mark.parametrize(
    ("awaited", "numbers"),
    [("initdb", [15]), ("redis-server", [15]), ("api grpc", [15]), ("dagster_webserver", [2, 2, 15])],
)
def test_told_to_end_in_its_start_it_leaves_no_process_behind(
    tmp_path: Path, require: Callable[[str, bool, str], None], awaited: str, numbers: Sequence[int]
) -> None:
    """PostgreSQL lived on, and whoever was in a hurry had all of Dagster live on with it."""
    require("redis", Redis.found(), "install it, e.g. apt install redis-server")
    require("postgres", Postgres.found(), "install the server itself, e.g. apt install postgresql")
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, awaited, *map(str, numbers)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    assert "ended with 0 and left []" in ended.stdout, ended.stdout + ended.stderr
