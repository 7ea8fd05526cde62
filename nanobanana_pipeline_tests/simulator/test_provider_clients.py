"""The provider's own clients, call by call: a whole generation must work for them, or the wire here is an invention.

Described from what the clients send and how strictly they decode, not copied: the provider's command line (in Go: a
field of another type than it expects fails the whole body) and the Python SDK of its family (whose base is the API's
origin plus `/model`).
"""

import json
from typing import Any

from nanobanana_pipeline_tests.simulator.conftest import LONG_S, Answer, Json, Talk, image_urls, send

CLI_HEADERS = {"User-Agent": "vtrix-cli/1.0", "X-Source": "cli"}


def decode_strictly(answer: Answer, types: dict[str, type | tuple[type, ...]]) -> Json:
    """Decode as a statically typed client does: absent fields are fine, fields of another type are not."""
    document = json.loads(answer.body)
    for name, wanted in types.items():
        value = document.get(name)
        if value is not None:
            assert isinstance(value, wanted), (name, value)
            assert not isinstance(value, bool)
    return document


CLI_TASK: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "status": str,
    "model": str,
    "output": list,
    "error": str,
    "created_at": int,
    "progress": (int, float),
    "usage": dict,
}


def cli_call(talk: Talk, method: str, url: str, body: Any = None) -> Json:
    """What its client does for each call: JSON headers even on a GET, any status from 400 on is an error."""
    headers = {**CLI_HEADERS, "Content-Type": "application/json", "Authorization": f"Bearer {talk.simulator.api_key}"}
    answer = send(method, url, headers=headers, body=b"" if body is None else json.dumps(body).encode())
    assert answer.status < 400
    task = decode_strictly(answer, CLI_TASK)
    for group in task.get("output", []):
        for entry in group["content"]:
            assert isinstance(entry["type"], str)
            assert isinstance(entry.get("url", ""), str)
    usage = task.get("usage") or {}
    assert isinstance(usage.get("cost", ""), str)
    return task


def test_the_command_line_runs_a_generation(talk: Talk, prompt: str) -> None:
    """`run`: read the model's spec without a key, check params by it, submit to its endpoint, poll below that."""
    url = f"{talk.simulator.base_url}/api/v1/skill/models/nano_banana_2/spec"
    envelope = send("GET", url, headers=CLI_HEADERS).json
    assert envelope["status"]["code"] == 200
    spec = envelope["data"]
    kinds = {param["name"]: param for param in spec["parameters"]}
    assert [name for name, param in kinds.items() if param["required"]] == ["prompt"]
    assert "16:9" in kinds["aspect_ratio"]["constraints"]["enum"]
    assert kinds["image_urls"]["type"] == "array"

    params = {"prompt": prompt, "aspect_ratio": "16:9", "resolution": "1K", "response_modalities": ["Image"]}
    endpoint = spec["api"]["endpoint"]
    created = cli_call(talk, "POST", endpoint, {"model": "nano_banana_2", "input": [{"params": params}]})
    assert created["id"] != ""
    running = cli_call(talk, "GET", f"{endpoint}/task/{created['id']}")
    talk.simulator.advance(LONG_S)
    done = cli_call(talk, "GET", f"{endpoint}/task/{created['id']}")

    assert (running["status"], done["status"], done["progress"]) == ("in_progress", "completed", 1)
    assert send("GET", image_urls(done)[0]).status == 200


def test_the_command_line_looks_at_a_task(talk: Talk, prompt: str) -> None:
    """`task status`: base URL plus the task's path, whatever its state."""
    task_id = talk.accepted(prompt)
    task = cli_call(talk, "GET", f"{talk.simulator.base_url}/model/v1/generation/task/{task_id}")

    assert (task["id"], task["status"]) == (task_id, "in_progress")


def test_the_command_line_lists_models_and_misses_unknown_ones(talk: Talk) -> None:
    """`models list`, and a spec that isn't there: the envelope's code says so."""
    base = f"{talk.simulator.base_url}/api/v1/skill/models"
    listed = send("GET", f"{base}?page=1&page_size=20", headers=CLI_HEADERS).json

    assert [model["id"] for model in listed["data"]["models"]] == ["nano_banana_2"]
    assert send("GET", f"{base}/kirin/spec", headers=CLI_HEADERS).json["status"]["code"] == 404


def test_the_command_line_shows_a_failure_that_is_plain_text(talk: Talk, prompt: str) -> None:
    """It decodes a task's error as a string alone: the shape that its users see."""
    talk.simulator.set_faults([{"fault": "failed", "shape": "string", "message": "internal generation error"}])
    task_id = talk.accepted(prompt)
    talk.simulator.advance(LONG_S)
    task = cli_call(talk, "GET", f"{talk.simulator.base_url}/model/v1/generation/task/{task_id}")

    assert (task["status"], task["error"]) == ("failed", "internal generation error")


SDK_TASK: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "status": str,
    "model": str,
    "progress": (int, float),
    "output": list,
    "usage": dict,
    "metadata": dict,
    "error": dict,
}


def test_the_python_sdk_runs_a_generation(talk: Talk, prompt: str) -> None:
    """`modal.create` with its extra fields, then `modal.wait`: lower-cased status, typed usage and metadata."""
    base = f"{talk.simulator.base_url}/model"
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {talk.simulator.api_key}",
        "User-Agent": "sa-python/0.1.4",
        "X-Project": "a-project",
    }
    body = {
        "model": "nano_banana_2",
        "input": [{"params": {"prompt": prompt}}],
        "moderation": True,
        "metadata": {"trace_id": "t-1"},
    }
    created = decode_strictly(
        send("POST", f"{base}/v1/generation", headers=headers, body=json.dumps(body).encode()), SDK_TASK
    )
    assert created["id"]
    talk.simulator.advance(LONG_S)
    task = decode_strictly(send("GET", f"{base}/v1/generation/task/{created['id']}", headers=headers), SDK_TASK)

    assert task["status"].lower() == "completed"
    assert all(isinstance(value, float) for value in task["metadata"].values())
    assert isinstance(task["usage"]["total_tokens"], int)
    image = next(entry for entry in task["output"][0]["content"] if entry["type"] == "image")
    assert isinstance(image["jobId"], str)
    assert send("GET", image["url"]).status == 200


def test_the_python_sdk_shows_a_failure_of_the_documented_shape(talk: Talk, prompt: str) -> None:
    """An object with an integer code and an error_message."""
    talk.simulator.set_faults([{"fault": "failed"}])
    task = talk.finished(prompt)

    assert isinstance(task["error"]["code"], int)
    assert task["error"]["error_message"] == "internal generation error"
