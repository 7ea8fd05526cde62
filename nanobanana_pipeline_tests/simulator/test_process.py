"""The simulator as a process: how it starts, says so, and ends, whatever ends first."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.simulator.conftest import Talk, send

COMMAND = [sys.executable, "-m", "nanobanana_pipeline.simulator", "--port", "0"]


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that isn't ours to wait for."""
    deadline = time.monotonic() + 120
    while _is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    state = shown_by_ps("stat", pid)
    return state != "" and not state.startswith("Z")  # a zombie has ended; whoever adopted it has yet to notice


def shown_by_ps(column: str, pid: int) -> str:
    """A column of `ps` for a process, empty when there is none."""
    return subprocess.run(
        ["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_when_it_is_ready_and_ends_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """One line of JSON to stdout, then silence; the book's temporary folder goes with it."""
    pipe = subprocess.PIPE
    # Watching its standard input, it ends with this test even if an assertion fails.
    with subprocess.Popen([*COMMAND, "--watch-stdin"], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        about = send("GET", ready["base_url"]).json
        book_was_there = Path(ready["book"]).exists()
        process.send_signal(number)
        assert process.wait(timeout=120) == 0
        output, errors = process.communicate(timeout=120)

    assert about["images_url"] == ready["images_url"]
    assert ready["pid"] == process.pid
    assert book_was_there
    assert (process.returncode, output, errors) == (0, "", "")
    assert not Path(ready["book"]).exists()


def test_it_ends_though_a_request_hangs(prompt: str) -> None:
    """A slow answer or an endless picture must not keep the process."""
    with SimulatorProcess() as simulator:
        simulator.set_faults([{"fault": "slow_answer", "seconds": 1000}])
        with socket.create_connection(("127.0.0.1", int(simulator.base_url.rpartition(":")[2]))) as connection:
            body = json.dumps({"model": "nano_banana_2", "input": [{"params": {"prompt": prompt}}]})
            connection.sendall(
                f"POST /model/v1/generation HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {simulator.api_key}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            simulator.wait_for("accepted")
            process = simulator._process
            simulator.stop()

    # By itself: else it is killed.
    assert process is not None
    assert process.returncode == 0
    assert [row["event"] for row in simulator.book] == ["accepted"]


def test_it_ends_when_its_parent_is_killed() -> None:
    """A demo that is killed must leave nothing running."""
    script = (
        "import time\n"
        "from nanobanana_pipeline.simulator.process import SimulatorProcess\n"
        "simulator = SimulatorProcess()\n"
        "simulator.start()\n"
        "print(simulator.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        wait_until_gone(pid)


def test_it_comes_back_on_the_same_ports_after_a_crash() -> None:
    """Chaos tests kill the provider and expect the client to find it again."""
    with SimulatorProcess() as simulator:
        before = (simulator.base_url, simulator.images_url, simulator.pid)
        simulator.kill()
        with pytest.raises(OSError, match="refused"):
            send("GET", simulator.base_url)
        simulator.start()

        assert (simulator.base_url, simulator.images_url) == before[:2]
        assert simulator.pid != before[2]
        assert send("GET", simulator.base_url).status == 200


def test_the_key_is_not_on_the_command_line() -> None:
    """Anyone on the machine can read `ps`."""
    with SimulatorProcess(api_key="sk-secret-of-the-test") as simulator:
        command_line = shown_by_ps("args", simulator.pid)

        assert Talk(simulator).submit("a picture").status == 200
    assert "nanobanana_pipeline.simulator" in command_line
    assert "sk-secret" not in command_line


def test_stopping_twice_or_never_starting_is_harmless() -> None:
    """Clean-up code runs in any order."""
    simulator = SimulatorProcess()
    simulator.stop()
    simulator.start()
    simulator.stop()
    simulator.stop()

    with pytest.raises(UserError, match="not running"):
        _ = simulator.pid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "192.0.2.1"}, "can't listen on 192.0.2.1"),
        ({"book": Path("/proc/nowhere/book.jsonl")}, "can't write the simulator's book"),
        ({"faults": Path("/nowhere.toml")}, "can't read the fault script"),
        ({"latency": -1}, "not zero or more"),
        ({"port": 70_000}, "not within"),
        ({"max_in_flight": 0}, "not within"),
    ],
)
def test_what_it_cant_do_it_says_in_one_line(options: dict[str, Any], message: str) -> None:
    """A demo that can't start must say why, not show a stack."""
    simulator = SimulatorProcess(**options)

    with pytest.raises(UserError, match=message) as caught:
        simulator.start()
    assert "Traceback" not in str(caught.value)


def test_a_port_in_use_is_named() -> None:
    """The commonest accident of all: it runs already."""
    with SimulatorProcess() as simulator:
        port = int(simulator.base_url.rpartition(":")[2])

        with pytest.raises(UserError, match=rf"{port}.*in use.*--port"):
            SimulatorProcess(port=port).start()


def test_an_empty_key_is_refused() -> None:
    """Or any caller with an empty key would pass for the owner."""
    command = [*COMMAND, "--api-key", ""]

    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_an_ipv6_address_will_do() -> None:
    """Some machines have no other loopback; the origin then needs brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with SimulatorProcess(host="::1", latency=0) as simulator:
        assert simulator.base_url.startswith("http://[::1]:")
        assert Talk(simulator).submit("a picture").status == 200
