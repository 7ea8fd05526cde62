"""Servers of one's own leave no process behind, however their start or their end is broken off."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typing_extensions import override

from nanobanana_pipeline_tests.servers.services import Service

# Starts a shell in a session of its own, which leaves a child to nobody, and is told to end three times meanwhile.
PROGRAM = """
import os, signal, subprocess, sys
from nanobanana_pipeline_tests.servers.services import leaving_nothing

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with leaving_nothing():
        try:
            leave = "trap '' TERM; (sleep 600 & echo $!); exec sleep 600"
            shell = subprocess.Popen(["sh", "-c", leave], stdout=subprocess.PIPE, text=True, start_new_session=True)
            print(shell.pid, shell.stdout.readline().strip(), flush=True)
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    pass
"""


class Sleeper(Service):
    """A server that never comes so far: somebody presses Ctrl-C."""

    name = "sleeper"
    seen = 0

    @override
    def command(self) -> Sequence[str | Path]:
        return ["sleep", "600"]

    @override
    def _answers(self) -> bool:
        self.seen = self.pid
        raise KeyboardInterrupt


def lives(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_start_that_is_broken_off_leaves_no_server(tmp_path: Path) -> None:
    """PostgreSQL outlived the program that had started it, with its port and its folder."""
    sleeper = Sleeper(tmp_path)
    with pytest.raises(KeyboardInterrupt), sleeper:
        pass
    assert sleeper.seen
    assert not lives(sleeper.seen)


def test_nothing_is_left_of_a_program_that_is_told_to_end_again_and_again() -> None:
    """Whoever presses Ctrl-C twice has it end at once, and whole."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    assert [pid for pid in pids if lives(pid)] == []
