"""The image's Dockerfile and compose.yaml without an engine: what they say, and the same commands run on this machine.

The image is a folder then: what its `COPY` lines take of the project, and a new virtual environment with what its
`RUN pip` line installs. Hosts and ports become this machine's; nothing else of a command changes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from nanobanana_pipeline_tests.servers.many_machines import ROOT, ManyMachines, Program
from nanobanana_pipeline_tests.servers.services import HOST

DOCKERFILE: Final = ROOT / "deploy" / "docker" / "Dockerfile"
COMPOSE: Final = ROOT / "deploy" / "docker" / "compose.yaml"
FILLED_IN: Final = {
    "NANOBANANA_API_KEY": "key-of-the-provider",
    "POSTGRES_PASSWORD": "password",
    "AWS_ACCESS_KEY_ID": "key-of-the-store",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-store",
}
_COMPOSE_PROGRAM: Final = Path(sys.executable).with_name("docker-compose")


def compose(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Compose itself on compose.yaml, in an environment of its own."""
    command = [_COMPOSE_PROGRAM, "--env-file", os.devnull, "-f", COMPOSE, *words]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"], **environment}, check=False, capture_output=True, text=True
    )


def compose_found() -> bool:
    """Whether Compose is installed."""
    return _COMPOSE_PROGRAM.exists()


def services() -> dict[str, Any]:
    """The services of compose.yaml as Compose understands them, everything filled in."""
    return json.loads(compose("config", "--format", "json", **FILLED_IN).stdout)["services"]


def instructions(name: str) -> list[str]:
    """What stands behind each instruction `name` of the Dockerfile."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^\s*{name} (.*)$", text, re.MULTILINE)


def copied() -> list[str]:
    """What of the project goes into the image."""
    sources = [[word for word in line.split() if not word.startswith("--")][:-1] for line in instructions("COPY")]
    return [source for line in sources for source in line if not source.startswith("/")]


class ImageHere(ManyMachines):
    """The services of compose.yaml as processes of this machine, with what the image holds."""

    def build(self) -> None:
        """Make the virtual environment as the image's is made, of the same files."""
        context = self.folder / "build"
        for source in copied():
            target = context / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)
        (install,) = [line for line in instructions("RUN") if "pip install" in line]
        command = install.replace("/opt/venv", str(self._venv)).replace("python -m venv", f"{sys.executable} -m venv")
        subprocess.run(["sh", "-c", command], cwd=context, check=True, stdout=subprocess.DEVNULL)

    def health(self, service: str) -> int:
        """The exit code of a service's health check."""
        check = services()[service].get("healthcheck", {}).get("test")
        words = check[1:] if check else json.loads(instructions("HEALTHCHECK")[0].partition(" CMD ")[2])
        program = next(program for program in self.programs if program.name == service)
        done = subprocess.run(
            self._here(words), env=os.environ | dict(program.environment), cwd=program.folder, check=False, timeout=60
        )
        return done.returncode

    @property
    def _venv(self) -> Path:
        return self.folder / "venv"

    def _here(self, words: list[str]) -> list[str]:
        """A command as it is, on this machine's ports."""
        ports = {"4000": str(self._code_port), "3000": str(self._port), "0.0.0.0": HOST}  # noqa: S104 - the container's
        pattern = re.compile("|".join(rf"\b{re.escape(port)}\b" for port in ports))
        here = [pattern.sub(lambda found: ports[found[0]], word) for word in words]
        return [str(self._venv / "bin" / here[0]) if (self._venv / "bin" / here[0]).exists() else here[0], *here[1:]]

    def _service(self, name: str, described: Mapping[str, Any]) -> Program:
        command = described.get("command") or json.loads(instructions("CMD")[-1])
        # Compose writes each dollar twice.
        words = [word.replace("$$", "$") for word in command]
        path = f"{self._venv}/bin:{os.environ['PATH']}"
        program = self._program(name, self._here(words), PATH=path, PYTHONPATH="")
        text = (ROOT / "deploy" / "docker" / "workspace.yaml").read_text()
        text = text.replace("host: code-server", f"host: {HOST}").replace("port: 4000", f"port: {self._code_port}")
        (program.folder / "workspace.yaml").write_text(text)
        return program

    @override
    def _start_dagster(self) -> None:
        self.build()
        described = services()
        first = self._service("prepare", described["prepare"])
        first.start()
        assert first.process is not None
        assert first.process.wait(300) == 0, first.log.read_text()
        self.programs = [self._service(name, described[name]) for name in ("code-server", "webserver", "daemon")]
        for program in self.programs:
            program.start()
        self.wait_for("Dagster's pages", self.loaded, 300)
        self.workers = [self._service("worker", described["worker"])]
        self.workers[0].start()
