"""One simulator for all who work in a folder: started once, left running while used, and gone when nobody uses it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.simulator.shared import Endpoint, shared_simulator, wait_for_end

# A user that says where its simulator is, and stays until it is killed.
USER = """
import sys, time
from nanobanana_pipeline.simulator.shared import shared_simulator
with shared_simulator(sys.argv[1]) as endpoint:
    print(endpoint.base_url, flush=True)
    time.sleep(600)
"""


def answers(endpoint: Endpoint) -> bool:
    """Whether the simulator is there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint.base_url, timeout=120) as answer:
            return answer.headers["X-Nanobanana-Simulator"] == "1"
    except OSError:
        return False


def hosts(folder: Path) -> list[int]:
    """The processes that keep a simulator for the folder."""
    listed = subprocess.run(["ps", "-ww", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    wanted = f"nanobanana_pipeline.simulator.shared {folder}"
    return [int(line.split()[0]) for line in listed.splitlines() if line.endswith(wanted)]


def wait_until_gone(folder: Path) -> None:
    """Wait until nothing runs for the folder any more."""
    deadline = time.monotonic() + 120
    while hosts(folder):
        assert time.monotonic() < deadline, f"{hosts(folder)} are still there"
        time.sleep(0.05)


def test_it_is_one_for_all_and_gone_after_the_last(tmp_path: Path) -> None:
    """Shards run in processes of their own, at once and one after the other, and meet one provider."""
    with ThreadPoolExecutor(4) as threads, ExitStack() as users:
        endpoints = list(threads.map(lambda _: users.enter_context(shared_simulator(tmp_path)), range(4)))
        assert len(set(endpoints)) == 1
        assert len(hosts(tmp_path)) == 1
        assert answers(endpoints[0])
    wait_until_gone(tmp_path)
    assert not answers(endpoints[0])


def test_it_outlives_the_user_that_started_it_and_not_the_last_one_however_that_ends(tmp_path: Path) -> None:
    """A run that is killed must take the simulator neither from the others, nor leave it behind for good."""
    with subprocess.Popen([sys.executable, "-c", USER, tmp_path], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        url = first.stdout.readline().strip()
        with shared_simulator(tmp_path) as endpoint:
            assert endpoint.base_url == url
            first.send_signal(signal.SIGKILL)
            first.wait()
            time.sleep(0.6)  # longer than the host takes to look round
            assert answers(endpoint)
    wait_until_gone(tmp_path)


def test_its_end_can_be_waited_for_unless_somebody_uses_it(tmp_path: Path) -> None:
    """`nanobanana dev` leaves nothing behind, and takes nothing from others."""
    with shared_simulator(tmp_path) as endpoint:
        wait_for_end(tmp_path)
        assert answers(endpoint)
    wait_for_end(tmp_path)
    assert hosts(tmp_path) == []
    assert not answers(endpoint)
    wait_for_end(tmp_path)


def test_it_comes_back_on_its_ports_with_its_book(tmp_path: Path) -> None:
    """What was submitted before is polled on, and its pictures are fetched from the addresses that were given."""
    with shared_simulator(tmp_path) as before:
        pass
    wait_until_gone(tmp_path)
    with shared_simulator(tmp_path) as after:
        assert after == before
        assert Path(after.book) == tmp_path / "book.jsonl"
    wait_until_gone(tmp_path)


def test_a_host_that_was_killed_is_replaced(tmp_path: Path) -> None:
    """Its note of where it was is still there, and leads nowhere."""
    with shared_simulator(tmp_path):
        (host,) = hosts(tmp_path)
        os.kill(host, signal.SIGKILL)
        wait_until_gone(tmp_path)
        with shared_simulator(tmp_path) as again:
            assert answers(again)
    wait_until_gone(tmp_path)


def test_a_host_that_can_not_start_is_one_line(tmp_path: Path) -> None:
    """A person sees what is wrong, not that something waited in vain."""
    (tmp_path / "book.jsonl").mkdir()
    with pytest.raises(UserError, match=r"^the simulator did not start: "), shared_simulator(tmp_path):
        pass
    assert hosts(tmp_path) == []
