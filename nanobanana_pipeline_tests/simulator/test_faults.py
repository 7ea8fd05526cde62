"""Every fault, on the wire and in the book: what a client would see, and whether it was billed."""

import http.client
import io
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from nanobanana_pipeline.simulator import faults
from nanobanana_pipeline.simulator.faults import FAULTS
from nanobanana_pipeline_tests.simulator.conftest import LONG_S, Answer, Json, Talk, image_urls, send

FLAT_1K = "0.067200"
CUT = (http.client.RemoteDisconnected, ConnectionResetError)


def strike(talk: Talk, fault: str, **more: Any) -> None:
    """Put one fault in force."""
    talk.simulator.set_faults([{"fault": fault, **more}])


# --- submit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "params", "status", "body"),
    [
        ("refused_400_moderation", {}, 400, {"error": {"code": 110001, "message": "input image is sensitive"}}),
        ("refused_400", {"message": "no"}, 400, {"error": {"code": 400, "message": "no"}}),
        ("unauthorised_401", {}, 401, {"error": "invalid api key"}),
        ("balance_403", {}, 403, {"error": "insufficient balance"}),
        ("rate_limited_429", {}, 429, {"error": "rate limit exceeded"}),
        ("error_500", {}, 500, {"error": {"code": 500, "message": "internal server error"}}),
        ("error_200", {"message": "busy"}, 200, {"error": "busy"}),
    ],
)
def test_refusals_say_why_and_make_no_task(
    talk: Talk, prompt: str, fault: str, params: Json, status: int, body: Json
) -> None:
    """Refused is refused: the book has no task and no cost, so a client may safely try again."""
    strike(talk, fault, **params)
    answer = talk.submit(prompt)
    talk.simulator.advance(LONG_S)

    assert answer.status == status
    assert {name: value for name, value in answer.json.items() if name != "request_id"} == body
    (row,) = talk.rows(prompt)
    assert (row["event"], row["status"], row["fault"]["fault"], row["cost_usd"]) == (
        "refused",
        status,
        fault,
        "0.000000",
    )


@pytest.mark.parametrize("retry_after", [7, "Wed, 21 Oct 2037 07:28:00 GMT", None])
def test_retry_after_comes_as_asked_for(talk: Talk, prompt: str, retry_after: int | str | None) -> None:
    """Seconds, a date, or nothing: HTTP allows all three."""
    strike(talk, "rate_limited_429", retry_after=retry_after)

    assert talk.submit(prompt).headers.get("retry-after") == (None if retry_after is None else str(retry_after))


@pytest.mark.parametrize(
    ("fault", "status", "accepted"),
    [("unavailable_503_html", 503, False), ("gateway_502", 502, False), ("gateway_504", 504, True)],
)
def test_gateways_answer_in_html(talk: Talk, prompt: str, fault: str, status: int, accepted: bool) -> None:  # noqa: FBT001 (a parameter of the test)
    """No JSON to find, and the same page whether a task was made or not."""
    strike(talk, fault)
    answer = talk.submit(prompt)
    talk.simulator.advance(LONG_S)

    assert (answer.status, answer.headers["content-type"]) == (status, "text/html")
    assert b"<html>" in answer.body
    assert talk.events(prompt) == (["accepted", "billed"] if accepted else ["refused"])


@pytest.mark.parametrize("fault", ["gateway_502", "gateway_504", "no_id_200"])
@pytest.mark.parametrize("accepted", [True, False])
def test_an_unknown_outcome_can_be_either(talk: Talk, prompt: str, fault: str, accepted: bool) -> None:  # noqa: FBT001 (a parameter of the test)
    """The client can't tell; only the book can. That is why it may not try again by itself."""
    strike(talk, fault, accepted=accepted)
    answer = talk.submit(prompt)
    talk.simulator.advance(LONG_S)

    assert b"id" not in answer.body.replace(b"width", b"")
    assert talk.events(prompt) == (["accepted", "billed"] if accepted else ["refused"])


def test_a_lost_answer_is_billed(talk: Talk, prompt: str) -> None:
    """The most expensive of all: the connection dies after the task was made."""
    strike(talk, "answer_lost")
    with pytest.raises(CUT):
        talk.submit(prompt)
    talk.simulator.advance(LONG_S)

    assert talk.events(prompt) == ["accepted", "billed"]
    assert talk.rows(prompt)[0]["answer"] == "answer_lost"


def test_a_slow_answer_comes_in_the_end(talk: Talk, prompt: str) -> None:
    """Longer than a client may want to wait; here simulated time makes it short."""
    strike(talk, "slow_answer", seconds=3_600)
    parts = urlsplit(talk.simulator.base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    try:
        connection.request(
            "POST",
            "/model/v1/generation",
            body=json.dumps({"model": "nano_banana_2", "input": [{"params": {"prompt": prompt}}]}),
            headers={"Authorization": f"Bearer {talk.simulator.api_key}"},
        )
        before = talk.simulator.stats()["answers"].get("200", 0)
        while not talk.events(prompt):
            time.sleep(0.01)
        assert talk.simulator.stats()["answers"].get("200", 0) == before
        talk.simulator.advance(3_700)
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()

    assert answer["id"] == talk.rows(prompt)[0]["task_id"]


def test_a_garbled_answer_is_billed(talk: Talk, prompt: str) -> None:
    """200 with bytes that are neither UTF-8 nor JSON: the id is lost, the task is not."""
    strike(talk, "undecodable_200")
    answer = talk.submit(prompt)
    talk.simulator.advance(LONG_S)

    assert answer.status == 200
    with pytest.raises(UnicodeDecodeError):
        answer.body.decode()
    assert talk.events(prompt) == ["accepted", "billed"]


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_leads_to_another_origin(talk: Talk, prompt: str, status: int) -> None:
    """A client that follows it carries the key abroad, and the book shows it."""
    strike(talk, "redirect_other_origin", status=status)
    answer = talk.submit(prompt)
    before = talk.simulator.stats()["token_leaks"]
    send("POST", answer.headers["location"], headers={"Authorization": f"Bearer {talk.simulator.api_key}"})

    assert answer.status == status
    assert answer.headers["location"].startswith(talk.simulator.images_url)
    assert talk.simulator.stats()["token_leaks"] == before + 1
    assert talk.events(prompt) == ["refused"]


def test_the_fast_path_answers_with_the_output(talk: Talk, prompt: str) -> None:
    """Completed at once: id and picture in one answer, billed before it leaves."""
    strike(talk, "fast_path")
    task = talk.submit(prompt).json

    assert task["status"] == "completed"
    assert talk.events(prompt) == ["accepted", "billed"]
    assert send("GET", image_urls(task)[0]).status == 200
    assert talk.poll(task["id"]).json["usage"] == task["usage"]


def test_a_task_may_fail_at_once(talk: Talk, prompt: str) -> None:
    """It has an id all the same, and costs nothing."""
    strike(talk, "fast_failed", code=5001098)
    task = talk.submit(prompt).json

    assert (task["status"], task["error"]["code"]) == ("failed", 5001098)
    assert task["id"]
    assert talk.events(prompt) == ["accepted", "failed"]


# --- task -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["failed", "failed_billed"])
@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ("seed", {"code": 5001095, "error_message": "it broke"}),
        ("padded", {"code": "005001095", "error_message": "it broke"}),
        ("string", "it broke"),
        ("message", {"code": 5001095, "message": "it broke"}),
    ],
)
def test_a_failed_task_in_each_error_shape(talk: Talk, prompt: str, fault: str, shape: str, error: Any) -> None:
    """No usage, whatever the shape; only the book knows whether it was charged for."""
    strike(talk, fault, shape=shape, message="it broke")
    task = talk.finished(prompt)

    assert (task["status"], task["error"]) == ("failed", error)
    assert "usage" not in task
    assert "output" not in task
    assert talk.events(prompt) == ["accepted", "billed" if fault == "failed_billed" else "failed"]
    assert talk.billed_usd(prompt) == ([FLAT_1K] if fault == "failed_billed" else [])
    assert (talk.rows(prompt)[1]["status"], talk.rows(prompt)[1]["images"]) == ("failed", 0)


@pytest.mark.parametrize("code", [5001096, 5001097, 110001, 190000])
def test_a_failure_has_the_code_that_is_asked_for(talk: Talk, prompt: str, code: int) -> None:
    """Codes decide what a client does next."""
    strike(talk, "failed", code=code)

    assert talk.finished(prompt)["error"]["code"] == code


@pytest.mark.parametrize(("how", "output"), [("absent", None), ("empty", []), ("empty_content", [{"content": []}])])
def test_completed_without_a_picture_is_billed_as_one(talk: Talk, prompt: str, how: str, output: Any) -> None:
    """Credits gone, no image: the client must book the money and give the reason."""
    strike(talk, "no_output", how=how)
    task = talk.finished(prompt)

    assert (task["status"], task.get("output")) == ("completed", output)
    assert task["usage"]["completion_tokens"] > 1120
    assert talk.rows(prompt)[1]["images"] == 0
    assert float(talk.billed_usd(prompt)[0]) > 0.0672


def test_words_alone_are_billed_as_a_picture(talk: Talk, prompt: str) -> None:
    """The model explains why it won't draw, at full price."""
    strike(talk, "text_only", text="No.")
    task = talk.finished(prompt)

    assert task["output"] == [{"content": [{"type": "text", "text": "No."}]}]
    assert float(talk.billed_usd(prompt)[0]) > 0.0672


def test_several_pictures_are_billed_each(talk: Talk, prompt: str) -> None:
    """One task, three files, three times the tier."""
    strike(talk, "several_images", images=3)
    task = talk.finished(prompt)
    pictures = {send("GET", url).body for url in image_urls(task)}

    assert len(pictures) == 3
    assert talk.rows(prompt)[1]["images"] == 3
    assert task["usage"]["completion_tokens"] > 3 * 1120
    assert float(talk.billed_usd(prompt)[0]) > 3 * 0.0672


@pytest.mark.parametrize("field", ["text", "content", "message"])
def test_words_beside_the_picture_in_any_field(talk: Talk, prompt: str, field: str) -> None:
    """The page doesn't name the field."""
    strike(talk, "with_text", field=field, text="Look!")
    entries = talk.finished(prompt)["output"][0]["content"]

    assert entries[0] == {"type": "text", field: "Look!"}
    assert entries[1]["type"] == "image"


def test_absent_usage_is_billed_flat(talk: Talk, prompt: str) -> None:
    """No tokens told, the list price of the image taken."""
    strike(talk, "usage_absent")

    assert "usage" not in talk.finished(prompt)
    assert talk.billed_usd(prompt) == [FLAT_1K]


@pytest.mark.parametrize("style", ["strings", "null", "empty", "input_output"])
def test_odd_usage(talk: Talk, prompt: str, style: str) -> None:
    """What can be read must be read; what can't is billed flat."""
    strike(talk, "usage_odd", style=style)
    usage = talk.finished(prompt)["usage"]
    booked = talk.rows(prompt)[1]["usage"]

    if style == "strings":
        assert usage == {name: str(count) for name, count in booked.items()}
    elif style == "input_output":
        assert (usage["input_tokens"], usage["output_tokens"]) == (booked["prompt_tokens"], booked["completion_tokens"])
    else:
        assert set(usage.values()) == {None if style == "null" else ""}
        assert talk.billed_usd(prompt) == [FLAT_1K]


@pytest.mark.parametrize(
    ("params", "told", "billed"),
    [
        ({"style": "string", "cost": "0.035714285714"}, "0.035714285714", "0.035714"),
        ({"style": "number", "cost": 0.05}, 0.05, "0.050000"),
        ({"style": "string", "cost": "0.0000005"}, "5E-7", "0.000001"),
        ({"style": "empty"}, "", FLAT_1K),
        ({"style": "null"}, None, FLAT_1K),
    ],
)
def test_the_providers_own_cost(talk: Talk, prompt: str, params: Json, told: Any, billed: str) -> None:
    """When the provider names a cost, that is what it charges, to the micro-dollar."""
    strike(talk, "usage_cost", **params)
    usage = talk.finished(prompt)["usage"]

    assert (usage["cost"], usage["quantity"]) == (told, 1)
    assert talk.billed_usd(prompt) == [billed]


def test_the_providers_own_cost_differs_from_the_list_by_default(talk: Talk, prompt: str) -> None:
    """A client that ignores it and counts tokens must be caught."""
    strike(talk, "usage_cost")
    usage = talk.finished(prompt)["usage"]

    assert usage["cost"] == talk.billed_usd(prompt)[0]
    assert float(usage["cost"]) < 0.0672


def test_flat_output_has_no_groups(talk: Talk, prompt: str) -> None:
    """Entries right in the list."""
    strike(talk, "flat_output")
    task = talk.finished(prompt, response_modalities=["Image"])

    assert [entry["type"] for entry in task["output"]] == ["image"]
    assert send("GET", image_urls(task)[0]).status == 200


@pytest.mark.parametrize("word", ["done", "success", "COMPLETED"])
def test_another_word_for_completed(talk: Talk, prompt: str, word: str) -> None:
    """Seen in the family; a client that knows one word waits for ever."""
    strike(talk, "status_done", word=word)

    assert talk.finished(prompt)["status"] == word


def test_several_task_faults_at_once(talk: Talk, prompt: str) -> None:
    """Trouble comes in company."""
    talk.simulator.set_faults(
        [{"fault": "flat_output"}, {"fault": "usage_absent"}, {"fault": "status_done"}, {"fault": "several_images"}]
    )
    task = talk.finished(prompt, response_modalities=["Image"])

    assert (task["status"], len(task["output"]), task.get("usage")) == ("done", 2, None)
    assert talk.billed_usd(prompt) == ["0.134400"]


def test_a_slow_task_takes_its_time(talk: Talk, prompt: str) -> None:
    """Deadlines need something to pass by."""
    strike(talk, "slow_task", seconds=50_000)
    task_id = talk.accepted(prompt)
    talk.simulator.advance(49_000)
    before = talk.poll(task_id).json["status"]
    talk.simulator.advance(1_100)

    assert (before, talk.poll(task_id).json["status"]) == ("in_progress", "completed")


def test_a_stuck_task_never_ends_and_is_never_billed(talk: Talk, prompt: str) -> None:
    """The provider lost it: at risk in the client's books, nothing in the provider's."""
    strike(talk, "stuck")
    task = talk.finished(prompt)

    assert task["status"] == "in_progress"
    assert task["progress"] < 1
    assert talk.events(prompt) == ["accepted"]


# --- poll -------------------------------------------------------------------------------------------------------------


def html(answer: Answer) -> bool:
    """A page for people."""
    return answer.headers["content-type"] == "text/html" and b"<html>" in answer.body


@pytest.mark.parametrize(
    ("fault", "params", "status", "check"),
    [
        ("poll_500", {}, 500, lambda answer: answer.json["error"]["code"] == 500),
        ("poll_502", {}, 502, html),
        ("poll_429", {}, 429, lambda answer: "retry-after" not in answer.headers),
        ("poll_429", {"retry_after": 3}, 429, lambda answer: answer.headers["retry-after"] == "3"),
        ("poll_401", {}, 401, lambda answer: answer.json == {"error": "invalid api key"}),
        ("poll_html", {}, 200, html),
        ("forgotten_404", {}, 404, lambda answer: answer.json == {"detail": "task not found"}),
    ],
)
def test_a_poll_goes_wrong_and_the_next_one_right(
    talk: Talk, prompt: str, fault: str, params: Json, status: int, check: Callable[[Answer], bool]
) -> None:
    """None of these says anything of the task, which is done and paid."""
    strike(talk, fault, times=1, **params)
    task_id = talk.accepted(prompt)
    talk.simulator.advance(LONG_S)
    wrong, right = talk.poll(task_id), talk.poll(task_id)

    assert wrong.status == status
    assert check(wrong)
    assert right.json["status"] == "completed"
    assert talk.events(prompt) == ["accepted", "billed"]


def test_a_truncated_poll_is_well_framed_and_no_json(talk: Talk, prompt: str) -> None:
    """HTTP is content with it; only the decoder notices."""
    strike(talk, "poll_truncated")
    answer = talk.poll(talk.accepted(prompt))

    assert answer.status == 200
    assert int(answer.headers["content-length"]) == len(answer.body)
    with pytest.raises(json.JSONDecodeError):
        _ = answer.json


def test_a_poll_is_cut(talk: Talk, prompt: str) -> None:
    """The connection dies, the task lives."""
    strike(talk, "poll_cut", times=1)
    task_id = talk.accepted(prompt)
    with pytest.raises(CUT):
        talk.poll(task_id)

    assert talk.poll(task_id).json["status"] == "in_progress"


def test_an_unknown_word_means_wait(talk: Talk, prompt: str) -> None:
    """While the task runs it has a status nobody listed; its end is told as always."""
    strike(talk, "unknown_word")
    task_id = talk.accepted(prompt)
    first = talk.poll(task_id).json
    talk.simulator.advance(LONG_S)

    assert first["status"] == "thinking"
    assert talk.poll(task_id).json["status"] == "completed"


def test_never_ends_hides_an_end_that_was_billed(talk: Talk, prompt: str) -> None:
    """The deadline passes for the client; the provider charged long ago. A late completion can still be had."""
    strike(talk, "never_ends")
    task = talk.finished(prompt)
    talk.simulator.set_faults([])

    assert task["status"] == "in_progress"
    assert talk.events(prompt) == ["accepted", "billed"]
    assert talk.poll(task["id"]).json["status"] == "completed"


# --- image ------------------------------------------------------------------------------------------------------------


def picture_of(talk: Talk, prompt: str, fault: str, **params: Any) -> Answer:
    """Download the picture of a task while a fault is in force."""
    strike(talk, fault, **params)
    return send("GET", image_urls(talk.finished(prompt))[0])


def test_the_first_address_is_refused_and_a_fresh_one_works(talk: Talk, prompt: str) -> None:
    """Polling again is free; generating again is not."""
    strike(talk, "url_expired")
    task = talk.finished(prompt)
    fresh = talk.poll(task["id"]).json

    assert [send("GET", image_urls(told)[0]).status for told in (task, fresh, task)] == [403, 200, 403]


def test_a_picture_is_gone(talk: Talk, prompt: str) -> None:
    """For ever, whatever address: paid and not to be had."""
    answer = picture_of(talk, prompt, "image_404")

    assert answer.status == 404
    assert talk.events(prompt) == ["accepted", "billed"]


def test_a_picture_fails_once_and_is_then_good(talk: Talk, prompt: str) -> None:
    """A download may be tried again at will: it costs nothing."""
    strike(talk, "image_500_then_good", failures=2)
    (url,) = image_urls(talk.finished(prompt))

    assert [send("GET", url).status for _ in range(3)] == [500, 500, 200]


def test_a_download_is_cut(talk: Talk, prompt: str) -> None:
    """Less than the Content-Length promised."""
    with pytest.raises(http.client.IncompleteRead) as caught:
        picture_of(talk, prompt, "image_cut")

    assert len(caught.value.partial) > 0
    assert caught.value.expected is not None
    assert caught.value.expected > 0


def test_a_page_comes_for_a_picture(talk: Talk, prompt: str) -> None:
    """A gateway's page with status 200, saved by many a client as .png."""
    answer = picture_of(talk, prompt, "image_html")

    assert answer.status == 200
    assert html(answer)


@pytest.mark.parametrize("number", range(4))
def test_half_a_file_is_well_framed(talk: Talk, prompt: str, number: int) -> None:
    """HTTP is content, decoding is not; prompts enough to meet both formats."""
    text = f"{prompt} {number}"
    answer = picture_of(talk, text, "image_truncated")
    assert int(answer.headers["content-length"]) == len(answer.body)
    with (
        Image.open(io.BytesIO(answer.body)) as image,
        pytest.raises(OSError, match=r"truncated|Truncated|broken|decod"),
    ):
        image.load()


def test_half_a_jpeg_passes_for_whole_by_its_ends(talk: Talk, prompt: str) -> None:
    """Start and end markers are there; only decoding it all tells."""
    answer = picture_of(talk, prompt, "image_truncated_parses", times=1)
    whole = send("GET", image_urls(talk.poll(talk.rows(prompt)[0]["task_id"]).json)[0])

    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.body.startswith(b"\xff\xd8\xff")
    assert answer.body.endswith(b"\xff\xd9")
    assert whole.status == 200
    with Image.open(io.BytesIO(answer.body)) as image:
        image.verify()


def test_a_blank_picture_has_the_right_size(talk: Talk, prompt: str) -> None:
    """All is well but for what is in it."""
    answer = picture_of(talk, prompt, "image_blank")

    with Image.open(io.BytesIO(answer.body)) as image:
        assert image.size == (1024, 1024)
        assert len(image.getcolors() or []) == 1


def test_a_picture_of_another_size(talk: Talk, prompt: str) -> None:
    """As seen on the extreme ratios."""
    answer = picture_of(talk, prompt, "image_wrong_size")

    with Image.open(io.BytesIO(answer.body)) as image:
        assert image.size == (352, 2928)


def test_a_bomb_is_small_and_decodes_to_more_than_memory_should_hold(talk: Talk, prompt: str) -> None:
    """Its header alone must be enough to turn it away."""
    answer = picture_of(talk, prompt, "image_bomb")

    assert answer.headers["content-type"] == "image/png"
    assert len(answer.body) < 200_000
    width, height = (int.from_bytes(answer.body[at : at + 4], "big") for at in (16, 20))
    assert width * height >= 600_000_000


def test_an_endless_picture_goes_on_for_longer_than_any_cap(talk: Talk, prompt: str) -> None:
    """Chunked, with no length to warn of it; the server stays well when the client leaves."""
    strike(talk, "image_endless")
    (url,) = image_urls(talk.finished(prompt))
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = 0
        while received < 20_000_000:
            received += len(connection.recv(1_000_000))

    assert talk.poll(talk.accepted(prompt)).status == 200


def test_a_slow_picture_comes_in_the_end(talk: Talk, prompt: str) -> None:
    """Slower than a download should be."""
    strike(talk, "image_slow", seconds=0.2)
    (url,) = image_urls(talk.finished(prompt))
    start = time.monotonic()
    answer = send("GET", url)

    assert answer.status == 200
    assert time.monotonic() - start >= 0.2


# --- all --------------------------------------------------------------------------------------------------------------


def test_every_fault_is_documented_and_tested_here() -> None:
    """The table in the docstring is the users' manual; a fault without a test is a promise."""
    tested = Path(__file__).read_text()

    assert [name for name in FAULTS if name not in (faults.__doc__ or "")] == []
    assert [name for name in FAULTS if f'"{name}"' not in tested] == []


def test_faults_of_a_task_outlive_a_restart(talk: Talk, prompt: str) -> None:
    """How a task ends was decided when it was accepted, and is in the book."""
    strike(talk, "failed", code=5001097, times=1)
    task_id = talk.accepted(prompt)
    talk.simulator.kill()
    talk.simulator.start()
    talk.simulator.advance(LONG_S)

    assert talk.poll(task_id).json["error"]["code"] == 5001097
    assert talk.rows(prompt)[0]["faults"][0]["fault"] == "failed"
