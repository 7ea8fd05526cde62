"""One simulator for all the tests of this folder that don't stop it, and a plain client to talk to it.

The client is the standard library's, on purpose: what arrives on the wire is what is tested, with no help from the
pipeline's own client.
"""

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from nanobanana_pipeline.simulator.process import SimulatorProcess

LATENCY_S = 100.0
LONG_S = 10_000.0  # longer than any task takes at that latency

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def send(method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
    """One request on a connection of its own; redirects are answers like any other."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


class Talk:
    """A well-behaved client of one simulator."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        self.simulator = simulator

    def submit_body(self, document: Any, **headers: str) -> Answer:
        """Submit any JSON document; headers by their name, `_` for `-`."""
        named = {"Authorization": f"Bearer {self.simulator.api_key}", "Content-Type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.simulator.base_url}/model/v1/generation"
        return send("POST", url, headers=named, body=json.dumps(document).encode())

    def submit(self, prompt: str, **params: Any) -> Answer:
        """Submit a prompt."""
        return self.submit_body({"model": "nano_banana_2", "input": [{"params": {"prompt": prompt, **params}}]})

    def accepted(self, prompt: str, **params: Any) -> str:
        """Submit a prompt that must be accepted; the task's id."""
        answer = self.submit(prompt, **params)
        assert answer.status == 200, answer.body
        return answer.json["id"]

    def poll(self, task_id: str) -> Answer:
        """Poll a task."""
        url = f"{self.simulator.base_url}/model/v1/generation/task/{task_id}"
        return send("GET", url, headers={"Authorization": f"Bearer {self.simulator.api_key}"})

    def finished(self, prompt: str, **params: Any) -> Json:
        """Submit a prompt, let the time pass, and poll the end."""
        task_id = self.accepted(prompt, **params)
        self.simulator.advance(LONG_S)
        answer = self.poll(task_id)
        assert answer.status == 200, answer.body
        return answer.json

    def rows(self, prompt: str) -> list[Json]:
        """The book's rows about a prompt."""
        return [row for row in self.simulator.book if row.get("prompt") == prompt]

    def events(self, prompt: str) -> list[str]:
        """The kinds of those rows, oldest first."""
        return [row["event"] for row in self.rows(prompt)]

    def billed_usd(self, prompt: str) -> list[str]:
        """What was billed for a prompt."""
        return [row["cost_usd"] for row in self.rows(prompt) if row["event"] == "billed"]


def image_urls(task: Json) -> list[str]:
    """The pictures of a completed task, in whichever of the two layouts."""
    groups = task.get("output", [])
    entries = [entry for group in groups for entry in group.get("content", [group])]
    return [entry["url"] for entry in entries if entry["type"] == "image"]


@pytest.fixture(scope="session")
def shared_simulator() -> Iterator[SimulatorProcess]:
    """A simulator whose tasks take their time until a test advances it."""
    with SimulatorProcess(latency=LATENCY_S) as simulator:
        yield simulator


@pytest.fixture
def talk(shared_simulator: SimulatorProcess) -> Talk:
    """A client of the shared simulator, with no fault script in force."""
    shared_simulator.set_faults([])
    return Talk(shared_simulator)


@pytest.fixture
def prompt(request: pytest.FixtureRequest) -> str:
    """A prompt that no other test uses: the book is shared."""
    return f"a picture for {request.node.name}"
