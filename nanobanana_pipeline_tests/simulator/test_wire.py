"""The answers of a provider in good order: submit, poll, pictures, refusals."""

import io
import json
import re
from typing import Any

import pytest
from PIL import Image

from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.simulator.conftest import LONG_S, Talk, image_urls, send

GOOD_PARAMS: dict[str, Any] = {"prompt": "a red fox"}


def document(params: Any) -> dict[str, Any]:
    """A submit's body around some params."""
    return {"model": "nano_banana_2", "input": [{"params": params}]}


def test_a_submit_answers_with_a_task_in_progress(talk: Talk, prompt: str) -> None:
    """The four fields of the contract, and no output yet."""
    answer = talk.submit(prompt)

    assert answer.status == 200
    assert set(answer.json) == {"id", "created_at", "status", "model"}
    assert answer.json["status"] == "in_progress"
    assert answer.json["model"] == "nano_banana_2"
    assert isinstance(answer.json["created_at"], int)
    assert answer.json["created_at"] > 1_700_000_000_000


def test_a_submit_never_tells_the_end_by_itself() -> None:
    """Even with no latency at all: the fast path is a fault to ask for, not an accident of timing."""
    with SimulatorProcess(latency=0) as simulator:
        talk = Talk(simulator)
        created = talk.submit("a red fox").json

        assert created["status"] == "in_progress"
        assert talk.poll(created["id"]).json["status"] == "completed"


def test_progress_grows_with_time_and_ends_in_output(talk: Talk, prompt: str) -> None:
    """Clients show progress; it must go from 0 towards 1 and never claim an end too early."""
    task_id = talk.accepted(prompt)
    first = talk.poll(task_id).json
    talk.simulator.advance(20)
    second = talk.poll(task_id).json
    talk.simulator.advance(LONG_S)
    last = talk.poll(task_id).json

    assert [first["status"], second["status"], last["status"]] == ["in_progress", "in_progress", "completed"]
    assert 0 <= first["progress"] < second["progress"] < last["progress"] == 1


def test_a_completed_task_has_output_usage_and_metadata(talk: Talk, prompt: str) -> None:
    """The contract's shapes: grouped content, three token counts that add up, times as floats."""
    task = talk.finished(prompt, response_modalities=["Image"], resolution="2K")

    (entry,) = task["output"][0]["content"]
    assert entry["type"] == "image"
    assert entry["jobId"]
    usage = task["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] > 1680
    assert {type(value) for value in task["metadata"].values()} == {float}
    assert set(task["metadata"]) == {"completed_at", "in_queue_at", "upload_at"}


def test_about_one_answer_in_ten_has_words_beside_the_picture(talk: Talk, prompt: str) -> None:
    """A client that takes the first entry for the picture must fall over here, not in production."""
    ids = [talk.accepted(f"{prompt} {number}") for number in range(60)]
    talk.simulator.advance(LONG_S)
    tasks = [talk.poll(task_id).json for task_id in ids]

    wordy = [task for task in tasks if any(entry["type"] == "text" for entry in task["output"][0]["content"])]
    assert 1 <= len(wordy) <= 20
    assert all(len(image_urls(task)) == 1 for task in tasks)


def test_images_alone_means_no_words(talk: Talk, prompt: str) -> None:
    """`["Image"]` is asked for to get nothing else; the bare string is the same."""
    shapes = (["Image"], "Image")
    ids = [talk.accepted(f"{prompt} {number}", response_modalities=shape) for number in range(25) for shape in shapes]
    talk.simulator.advance(LONG_S)

    contents = [talk.poll(task_id).json["output"][0]["content"] for task_id in ids]
    assert all([entry["type"] for entry in content] == ["image"] for content in contents)


@pytest.mark.parametrize("resolution", ["0.5K", "1K", "2K", "4K"])
def test_every_size_of_the_table_is_what_the_picture_has(talk: Talk, prompt: str, resolution: str) -> None:
    """The pipeline compares sizes with the request: the simulator's must come from the same table."""
    spec = load_spec()
    ratios = spec.aspect_ratios if resolution in ("0.5K", "1K") else ("16:9", "1:8")
    ids = {ratio: talk.accepted(prompt, aspect_ratio=ratio, resolution=resolution) for ratio in ratios}
    talk.simulator.advance(LONG_S)

    for ratio, task_id in ids.items():
        (url,) = image_urls(talk.poll(task_id).json)
        picture = send("GET", url)
        with Image.open(io.BytesIO(picture.body)) as image:
            image.load()
            assert image.size == spec.expected_size(ratio, resolution)
            assert picture.headers["content-type"] == Image.MIME[image.format or ""]


def test_pictures_are_on_another_origin_that_asks_for_no_token(talk: Talk, prompt: str) -> None:
    """The contract's trap: the token must stay home, so the second origin must work without it."""
    (url,) = image_urls(talk.finished(prompt))

    assert url.startswith(talk.simulator.images_url + "/")
    assert talk.simulator.images_url != talk.simulator.base_url
    assert send("GET", url).status == 200
    assert send("HEAD", url).body == b""


def test_an_address_expires_and_a_fresh_one_comes_with_the_next_poll(talk: Talk, prompt: str) -> None:
    """Result URLs don't live for ever anywhere; asking again is the only way back."""
    task = talk.finished(prompt)
    (old,) = image_urls(task)
    talk.simulator.advance(4_000)
    (fresh,) = image_urls(talk.poll(task["id"]).json)

    assert send("GET", old).status == 403
    assert send("GET", fresh).status == 200


@pytest.mark.parametrize("spoil", [lambda url: url[:-1] + "x", lambda url: url.partition("?")[0]])
def test_an_address_without_its_signature_is_refused(talk: Talk, prompt: str, spoil: Any) -> None:
    """Or a client that builds addresses itself would pass here and fail on the real one."""
    (url,) = image_urls(talk.finished(prompt))

    assert send("GET", spoil(url)).status == 403
    assert send("GET", f"{talk.simulator.images_url}/images/elsewhere").status == 404


def test_the_same_picture_is_the_same_bytes(talk: Talk, prompt: str) -> None:
    """Files are named by their hash: a second download of one task must not look like another image."""
    task = talk.finished(prompt)
    urls = image_urls(task) + image_urls(talk.poll(task["id"]).json)

    assert len({send("GET", url).body for url in urls}) == 1


def test_two_tasks_for_one_prompt_are_two_pictures(talk: Talk, prompt: str) -> None:
    """Samples of a prompt would otherwise all be one file."""
    urls = image_urls(talk.finished(prompt)) + image_urls(talk.finished(prompt))

    assert len({send("GET", url).body for url in urls}) == 2


def test_every_answer_says_that_it_is_simulated(talk: Talk, prompt: str) -> None:
    """The pipeline stamps its ledger by this header; one answer without it could mix worlds."""
    (url,) = image_urls(talk.finished(prompt))
    base = talk.simulator.base_url
    answers = [
        send("GET", f"{base}/"),
        send("GET", f"{base}/nowhere"),
        send("GET", f"{base}/simulator/stats"),
        talk.submit(""),
        talk.poll("none"),
        send("GET", url),
        send("GET", f"{talk.simulator.images_url}/nowhere"),
    ]

    assert {answer.headers["x-nanobanana-simulator"] for answer in answers} == {"1"}
    assert answers[0].status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong"},
        {"Authorization": "simulated-key"},
        {"Authorization": "Basic simulated-key"},
        {"Authorization": "Bearer simulated-kéy"},
    ],
)
def test_a_wrong_key_is_refused(talk: Talk, prompt: str, headers: dict[str, str]) -> None:
    """Both for submits and polls, and before anything is looked at."""
    assert talk.submit_body(document({"prompt": prompt}), **headers).status == 401
    url = f"{talk.simulator.base_url}/model/v1/generation/task/none"
    assert send("GET", url, headers=headers).status == 401
    assert send("GET", url).status == 401


@pytest.mark.parametrize(
    "params",
    [
        {"prompt": "x"},
        {"prompt": "木" * 2500},
        {"prompt": "🦊" * 2500},
        {**GOOD_PARAMS, "image_urls": []},
        {**GOOD_PARAMS, "image_urls": ["https://a.example/1.png"] * 3},
        {**GOOD_PARAMS, "aspect_ratio": "8:1", "resolution": "0.5K"},
        {**GOOD_PARAMS, "response_modalities": ["Text", "Image"]},
        {**GOOD_PARAMS, "response_modalities": "Image"},
        {**GOOD_PARAMS, "invented": {"any": "thing"}},
    ],
)
def test_good_params_are_accepted(talk: Talk, params: dict[str, Any]) -> None:
    """The limits count characters, and what the provider doesn't know it ignores."""
    assert talk.submit_body(document(params)).status == 200


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ""}, "1 to 2500"),
        ({"prompt": "x" * 2501}, "2501"),
        ({**GOOD_PARAMS, "image_urls": None}, "image_urls"),
        ({**GOOD_PARAMS, "image_urls": "https://a.example/1.png"}, "image_urls"),
        ({**GOOD_PARAMS, "image_urls": [1]}, "image_urls"),
        ({**GOOD_PARAMS, "image_urls": ["https://a.example/1.png"] * 4}, "at most 3"),
        ({**GOOD_PARAMS, "image_urls": ["ftp://a.example/1.png"]}, "usable"),
        ({**GOOD_PARAMS, "image_urls": ["https://"]}, "usable"),
        ({**GOOD_PARAMS, "image_urls": ["http://[1"]}, "usable"),
        ({**GOOD_PARAMS, "aspect_ratio": "16:10"}, "aspect_ratio"),
        ({**GOOD_PARAMS, "aspect_ratio": None}, "aspect_ratio"),
        ({**GOOD_PARAMS, "aspect_ratio": ["1:1"]}, "aspect_ratio"),
        ({**GOOD_PARAMS, "resolution": "8K"}, "resolution"),
        ({**GOOD_PARAMS, "response_modalities": []}, "response_modalities"),
        ({**GOOD_PARAMS, "response_modalities": ["Image", "Sound"]}, "response_modalities"),
        ({**GOOD_PARAMS, "response_modalities": [{}]}, "response_modalities"),
        ("prompt", "params"),
        (None, "params"),
    ],
)
def test_bad_params_are_refused_with_a_reason(talk: Talk, params: Any, message: str) -> None:
    """A client that sends nulls, or counts bytes, must be told so before it goes live."""
    answer = talk.submit_body(document(params))

    assert answer.status == 400
    assert message in answer.json["error"]["message"]
    assert answer.json["error"]["code"] == 400
    assert answer.json["request_id"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 400),
        ({"input": [{"params": GOOD_PARAMS}]}, 400),
        ({"model": "nano_banana_3", "input": [{"params": GOOD_PARAMS}]}, 404),
        ({"model": "nano_banana_2"}, 400),
        ({"model": "nano_banana_2", "input": []}, 400),
        ({"model": "nano_banana_2", "input": [{"params": GOOD_PARAMS}] * 2}, 400),
        ({"model": "nano_banana_2", "input": ["x"]}, 400),
        ({"model": "nano_banana_2", "input": [{"params": {"prompt": "x" * 1_000_001}}]}, 413),
    ],
)
def test_bad_bodies_are_refused(talk: Talk, body: Any, status: int) -> None:
    """The envelope is part of the contract too."""
    assert talk.submit_body(body).status == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model": "\xff"}', b'{"model": "nano_banana_2", "input": NaN}', b'"\\ud800"']
)
def test_what_is_no_json_is_refused(talk: Talk, body: bytes) -> None:
    """A half-written body must not make a task."""
    headers = {"Authorization": f"Bearer {talk.simulator.api_key}"}

    assert send("POST", f"{talk.simulator.base_url}/model/v1/generation", headers=headers, body=body).status == 400


def test_refusals_are_in_the_book_at_no_cost(talk: Talk, prompt: str) -> None:
    """Reconciliation counts them; none may look like money."""
    talk.submit(prompt, resolution="8K")

    row = [row for row in talk.simulator.book if row["event"] == "refused"][-1]
    assert (row["status"], row["cost_usd"]) == (400, "0.000000")


def test_an_unknown_task_is_not_found(talk: Talk) -> None:
    """And the body is the third of the error shapes."""
    answer = talk.poll("d000000000000000000")

    assert (answer.status, answer.json) == (404, {"detail": "task not found"})


def test_a_request_id_is_given_back_in_errors(talk: Talk) -> None:
    """Support asks for it."""
    answer = talk.submit_body(document({}), X_Request_Id="mine-1")

    assert answer.json["request_id"] == "mine-1"


def test_other_methods_and_paths_are_turned_away(talk: Talk) -> None:
    """A wrong base path must not look like a provider."""
    base = talk.simulator.base_url

    assert send("GET", f"{base}/model/v1/generation").status == 405
    assert send("GET", f"{base}/v1/generation").status == 404
    assert send("POST", f"{talk.simulator.images_url}/images/x/0.png").status == 405


def test_latency_is_drawn_from_seed_and_prompt_around_the_median() -> None:
    """Benchmarks and failures must be repeatable, and the spread realistic."""
    books: list[list[float]] = []
    for seed in (1, 1, 2):
        with SimulatorProcess(latency=30, seed=seed) as simulator:
            talk = Talk(simulator)
            for number in range(80):
                talk.accepted(f"prompt {number}")
            books.append([row["latency_s"] for row in simulator.book])

    first, again, other = books
    assert first == again
    assert first != other
    assert 25 < sorted(first)[40] < 36
    assert min(first) < 20
    assert max(first) > 45


def test_too_many_tasks_in_flight_are_refused_until_some_end() -> None:
    """The client's adaptive concurrency learns from this 429, which has no Retry-After."""
    with SimulatorProcess(latency=60, max_in_flight=2) as simulator:
        talk = Talk(simulator)
        answers = [talk.submit(f"prompt {number}") for number in range(3)]
        simulator.advance(LONG_S)
        after = talk.submit("prompt 3")
        stats = simulator.stats()

    assert [answer.status for answer in answers] == [200, 200, 429]
    assert "retry-after" not in answers[2].headers
    assert after.status == 200
    assert (stats["max_in_flight"], stats["refused"], stats["accepted"]) == (2, 1, 3)


def test_too_many_submits_a_minute_are_refused_with_the_time_to_wait() -> None:
    """Retry-After is honest: a submit at that moment passes."""
    with SimulatorProcess(requests_per_minute=3) as simulator:
        talk = Talk(simulator)
        answers = [talk.submit(f"prompt {number}") for number in range(4)]
        wait = int(answers[3].headers["retry-after"])
        simulator.advance(wait)
        after = talk.submit("prompt 4")

    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert 55 <= wait <= 61
    assert after.status == 200


def test_padded_and_cached_pictures_serve_benchmarks() -> None:
    """A benchmark wants one known size for all, and no drawing."""
    with SimulatorProcess(latency=0, picture_bytes=277_000, cached_picture=True) as simulator:
        talk = Talk(simulator)
        pictures = [send("GET", image_urls(talk.poll(talk.accepted(text)).json)[0]) for text in ("one", "two")]

    assert pictures[0].body == pictures[1].body
    assert len(pictures[0].body) == 277_000
    with Image.open(io.BytesIO(pictures[0].body)) as image:
        image.load()
        assert image.size == (1024, 1024)


def test_the_stats_count_what_happened(talk: Talk, prompt: str) -> None:
    """Other tests rely on the counts, of polls above all."""
    talk.simulator.advance(LONG_S)
    before = talk.simulator.stats()
    task = talk.finished(prompt)
    send("GET", image_urls(task)[0])
    after = talk.simulator.stats()

    expected = {"submits": 1, "polls": 1, "images": 1, "accepted": 1, "billed": 1, "refused": 0}
    assert {name: after[name] - before[name] for name in expected} == expected
    assert re.fullmatch(r"\d+\.\d{6}", after["cost_usd"])
    assert after["in_flight"] <= after["max_in_flight"]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"seconds": -1}', b'{"seconds": "x"}', b'{"seconds": NaN}', b"[]"])
def test_a_wrong_advance_is_refused(talk: Talk, body: bytes) -> None:
    """Time only goes forward, and a test's mistake must not pass for success."""
    answer = send("POST", f"{talk.simulator.base_url}/simulator/advance", body=body)

    assert answer.status == 400
    assert "seconds" in json.dumps(answer.json)
