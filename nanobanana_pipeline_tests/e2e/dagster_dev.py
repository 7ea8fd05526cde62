"""A real `dagster dev`, as a person starts it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import dagster as dg
from typing_extensions import override

from nanobanana_pipeline.orchestration.instance import WORKER_TAG, prepare_home
from nanobanana_pipeline_tests.servers.dagster_pages import DagsterPages
from nanobanana_pipeline_tests.servers.services import free_port

ROOT = Path(__file__).parents[2]


class DagsterDev(DagsterPages):
    """`dagster dev -w workspace.yaml` in a process group of its own; a context manager that ends all of it.

    `module` is loaded in place of the project's definitions, under the same name.
    """

    def __init__(self, home: Path, environment: Mapping[str, str], *, module: str | None = None) -> None:
        self._home = prepare_home(home)
        self._environment = {**os.environ, **environment, "DAGSTER_HOME": str(self._home), "PYTHONPATH": str(ROOT)}
        self._log = home / "dagster-dev.log"
        self._workspace = ROOT / "workspace.yaml"
        if module is not None:
            text = self._workspace.read_text().replace("nanobanana_pipeline.definitions", module)
            self._workspace = home / "workspace.yaml"
            self._workspace.write_text(text)
        self._port = free_port()
        super().__init__(f"http://127.0.0.1:{self._port}")
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        command = ["-m", "dagster", "dev", "-w", str(self._workspace), "--port", str(self._port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self._home.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait_for("its pages", self.loaded, 240)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        # Those that have outlived the first of them.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    @override
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def worker_of(self, shard: str) -> int:
        """The process that works on a shard."""
        filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={"dagster/partition": shard})
        with dg.DagsterInstance.from_config(str(self._home)) as instance:
            (run,) = instance.get_runs(filters=filters)
        return json.loads(run.tags[WORKER_TAG])["pid"]

    @override
    def assert_alive(self) -> None:
        """Fail when `dagster dev` has ended by itself."""
        assert self._process.poll() is None, self.log[-5000:]
