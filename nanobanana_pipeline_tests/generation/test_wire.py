"""Bodies to objects and back: every shape that was seen, and whatever else may come."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.answers import (
    Accepted,
    OutputEntry,
    Polled,
    PollError,
    ProviderError,
    Refused,
    Task,
    Unknown,
)
from nanobanana_pipeline.generation.values import LEFT_OUT, MAX_LINE_CHARS, MAX_STORED_BYTES
from nanobanana_pipeline.generation.wire import UNREAD_OUTPUT, parse_poll, parse_submit, submit_body
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.model_specs.pricing import Usage

SPEC = load_spec()
SECRET = "sk-secret-0123456789"


def polled(answer: Any) -> Task:
    """The task that a poll's body shows."""
    read = parse_poll(200, {}, body_of(answer), SPEC)
    assert isinstance(read, Polled), read
    return read.task


def submitted(answer: Any, status: int = 200) -> Accepted | Refused | Unknown:
    """What the answer to a submit says."""
    return parse_submit(status, {}, body_of(answer), SPEC)


def body_of(answer: Any) -> bytes:
    """An answer as bytes; a string is taken as it stands."""
    return answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()


def done(**fields: Any) -> dict[str, Any]:
    """A completed task."""
    return {"id": "task-1", "status": "completed"} | fields


# What is sent


def test_what_a_row_leaves_open_is_left_out() -> None:
    """A null where the page says "optional" may be refused, or taken for another default."""
    assert submit_body(Request("nano_banana_2", "a cat"), SPEC) == {
        "model": "nano_banana_2",
        "input": [{"params": {"prompt": "a cat"}}],
    }


def test_what_a_row_sets_is_sent_under_the_names_of_the_page() -> None:
    """A name the provider doesn't know is ignored there, and the image comes out wrong."""
    request = Request("nano_banana_2", "a cat", ("https://a/1.png", "https://a/2.png"), "16:9", "2K", ("Image",))
    (entry,) = submit_body(request, SPEC)["input"]
    assert entry == {
        "params": {
            "prompt": "a cat",
            "image_urls": ["https://a/1.png", "https://a/2.png"],
            "aspect_ratio": "16:9",
            "resolution": "2K",
            "response_modalities": ["Image"],
        }
    }


@pytest.mark.parametrize(
    ("modalities", "sent"),
    [(("Image",), "Image"), (None, None), (("Image", "Text"), None), (("Text", "Image"), None)],
)
def test_modalities_can_be_sent_as_a_string(modalities: tuple[str, ...] | None, sent: str | None) -> None:
    """The page contradicts itself on their type; both together are the default, which needs no parameter."""
    spec = SPEC.model_copy(update={"api": SPEC.api.model_copy(update={"modalities_shape": "string"})})
    body = submit_body(Request("nano_banana_2", "a cat", response_modalities=modalities), spec)
    assert body["input"][0]["params"].get("response_modalities") == sent


# The answer to a submit


def test_the_answer_of_the_page_is_an_accepted_task() -> None:
    """The seed's own example."""
    answer = {"id": "task-1", "created_at": 1760000000000, "status": "in_progress", "model": "nano_banana_2"}
    assert submitted(answer) == Accepted(Task("task-1", "running", "in_progress", created_at=1760000000000))


def test_a_task_may_be_completed_at_once() -> None:
    """The fast path: polling it again would only cost time."""
    answer = done(output=[{"content": [{"type": "image", "url": "https://a/1.png"}]}])
    read = submitted(answer)
    assert isinstance(read, Accepted)
    assert (read.task.state, read.task.image_urls) == ("completed", ("https://a/1.png",))


def test_a_task_may_have_failed_at_once() -> None:
    """It has an id, so it is an attempt that failed, not a submit that was refused."""
    read = submitted({"id": "t", "status": "failed", "error": {"code": 5001095, "error_message": "internal"}})
    assert isinstance(read, Accepted)
    assert (read.task.state, read.task.error) == ("failed", ProviderError("005001095", "internal"))


@pytest.mark.parametrize("id_", ["task-1", " task-1 ", 123, 12345678901234567890, "任务-1", "a/b c"])
def test_an_id_is_any_printable_text(id_: Any) -> None:
    """An id that is not kept is a task that is paid and lost."""
    read = submitted({"id": id_, "status": "in_progress"})
    assert isinstance(read, Accepted)
    assert read.task.id == str(id_).strip()


@pytest.mark.parametrize("id_", [None, "", "  ", True, 1.5, [], {}, "..", ".", "a\nb", "a\x00", "\ud800", "x" * 513])
def test_without_an_id_that_can_be_asked_about_the_outcome_is_unknown(id_: Any) -> None:
    """The provider said yes, and to what cannot be said: a person decides."""
    assert isinstance(submitted({"id": id_, "status": "in_progress"}), Unknown)


@pytest.mark.parametrize(
    "error", [None, "", {}, [], False, 0, {"code": 0}, {"code": 0, "message": "success"}, {"code": None, "message": ""}]
)
def test_an_error_that_says_nothing_is_none(error: Any) -> None:
    """Many gateways send an empty error with every success: it must not be read as "no task was created"."""
    assert isinstance(submitted({"status": "in_progress", "error": error}), Unknown)
    assert isinstance(submitted({"id": "t", "status": "in_progress", "error": error}), Accepted)
    assert polled(done(error=error)).error is None


def test_an_error_without_an_id_is_a_refusal() -> None:
    """The task was not created, so nothing is at risk."""
    read = submitted({"error": {"code": "110001", "message": "input image sensitive"}})
    assert read == Refused(ErrorKind.CONTENT_POLICY, "000110001", "input image sensitive", 200)


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "words"),
    [
        (401, '{"error": "invalid api key"}', ErrorKind.AUTH, None, "invalid api key"),
        (403, '{"error": {"code": 1, "message": "Insufficient balance"}}', ErrorKind.BALANCE, "000000001", "balance"),
        (403, '{"detail": "not permitted"}', ErrorKind.AUTH, None, "not permitted"),
        (400, '{"error": {"code": 110001, "message": "no"}}', ErrorKind.CONTENT_POLICY, "000110001", "no"),
        (400, '{"code": 110001, "message": "no"}', ErrorKind.CONTENT_POLICY, "000110001", "no"),
        (422, '{"detail": [{"loc": ["prompt"], "msg": "too long"}]}', ErrorKind.INVALID_REQUEST, None, "too long"),
        (404, "", ErrorKind.NOT_FOUND, None, "unknown model"),
        (429, "<html><title>Slow down</title><style>b{}</style></html>", ErrorKind.RATE_LIMITED, None, "Slow down"),
        (500, "plain words", ErrorKind.RETRYABLE, None, "plain words"),
        (503, "[1, 2]", ErrorKind.RETRYABLE, None, "[1, 2]"),
    ],
)
def test_a_refusal_is_read_in_every_shape(
    status: int, body: str, kind: ErrorKind, code: str | None, words: str
) -> None:
    """The user needs the provider's own words, whatever they are wrapped in."""
    read = submitted(body, status)
    assert isinstance(read, Refused)
    assert (read.kind, read.code, read.http_status) == (kind, code, status)
    assert words in read.message
    assert "<" not in read.message
    assert "{}" not in read.message


@pytest.mark.parametrize("status", [502, 504, 408, 599])
@pytest.mark.parametrize("body", ["", "<html>", '{"error": "no"}', '{"id": "t", "status": "in_progress"}'])
def test_a_gateways_error_leaves_the_outcome_unknown(status: int, body: str) -> None:
    """The gateway doesn't know either."""
    assert isinstance(submitted(body, status), Unknown)


# Polling


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("in_progress", "running"),
        ("pending", "running"),
        ("queued", "running"),
        ("in_queue", "running"),
        ("processing", "running"),
        ("completed", "completed"),
        ("done", "completed"),
        ("success", "completed"),
        (" COMPLETED ", "completed"),
        ("failed", "failed"),
        ("thinking", "running"),
        ("failed?", "running"),
        ("cancelled", "running"),
    ],
)
def test_only_a_known_word_ends_a_task(word: str, state: str) -> None:
    """A word nobody knows, taken for a failure, submits and pays again."""
    task = polled({"id": "t", "status": word})
    assert (task.state, task.status_word) == (state, word.strip().lower())


@pytest.mark.parametrize("status", [None, 3, "", [], {"x": 1}, True])
def test_an_answer_without_a_status_says_nothing_of_the_task(status: Any) -> None:
    """`{"error": …}` to a poll is about the question: the task may be running."""
    read = parse_poll(200, {}, body_of({"id": "t", "status": status, "error": "no such thing"}), SPEC)
    assert isinstance(read, PollError)
    assert read.kind is ErrorKind.RETRYABLE
    assert "no such thing" in read.message


@pytest.mark.parametrize("body", ["", "null", "[]", "7", '"done"', "<html>", '{"status": "comp', "\xff\xfe"])
def test_a_body_that_is_no_task_is_asked_for_again(body: str) -> None:
    """Half an answer is no answer."""
    assert isinstance(parse_poll(200, {}, body_of(body), SPEC), PollError)


def test_progress_is_a_share() -> None:
    """Anything else would make the display lie."""
    shares = [0.5, 1, "0.25", -1, 45, "half", None, True]
    assert [polled(done(progress=share)).progress for share in shares] == [0.5, 1.0, 0.25, None, None, None, None, None]


IMAGE = {"type": "image", "url": "https://a/1.png", "jobId": "j1"}
READ = OutputEntry("image", "https://a/1.png", None, {"jobId": "j1"})


@pytest.mark.parametrize(
    "output",
    [
        [{"content": [IMAGE]}],
        [IMAGE],
        {"content": [IMAGE]},
        [{"content": IMAGE}],
        IMAGE,
        [{"type": "message", "content": [IMAGE]}],
        [{"content": []}, {"content": [IMAGE]}],
    ],
)
def test_output_is_read_nested_and_flat(output: Any) -> None:
    """An image that is not seen is paid for and lost."""
    assert polled(done(output=output)).entries == (READ,)


@pytest.mark.parametrize("output", [None, [], {}, "", [{"content": []}], [{"content": None}], [[]]])
def test_output_may_be_empty(output: Any) -> None:
    """Completed without an image is a fact to be recorded, not an error of ours."""
    assert polled(done(output=output)).image_urls == ()
    assert polled({"id": "t", "status": "completed"}).entries == ()


def test_several_images_and_words_keep_their_order() -> None:
    """Files are numbered by it."""
    output = [{"content": [IMAGE, {"type": "text", "text": "a cat"}, {"type": "image", "url": "https://a/2.png"}]}]
    task = polled(done(output=output))
    assert task.image_urls == ("https://a/1.png", "https://a/2.png")
    assert task.text == "a cat"


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"type": "text", "text": "words"}, "words"),
        ({"type": "text", "content": "words"}, "words"),
        ({"type": "text", "text": "", "content": "words"}, "words"),
        ({"type": "text", "text": None, "content": "words"}, "words"),
        ({"type": "text", "text": "words", "content": "others"}, "words"),
        ({"text": "words"}, "words"),
        ({"type": "text", "message": "words"}, None),
        ({"type": "text", "content": ["words"]}, None),
    ],
)
def test_text_is_looked_for_and_never_lost(entry: dict[str, Any], text: str | None) -> None:
    """Where it stands is not documented: what is not found is kept in the metadata."""
    task = polled(done(output=[{"content": [entry]}]))
    assert task.text == text
    assert ("words" in json.dumps(task.metadata)) == (text is None)


def test_what_can_not_be_read_of_an_output_is_kept() -> None:
    """A later version may be able to."""
    unread = [{"type": "image"}, "https://a/1.png", {"type": "video", "data": "x"}]
    task = polled(done(output=unread, metadata={"queue": 1}))
    assert task.metadata == {"queue": 1, UNREAD_OUTPUT: unread}
    assert task.image_urls == ()


# Usage and money


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 1416, "total_tokens": 1426}, Usage(10, 1416, 1426)),
        ({"input_tokens": 10, "output_tokens": 1416, "total_tokens": 1426}, Usage(10, 1416, 1426)),
        ({"prompt_tokens": "10", "completion_tokens": 1416.0}, Usage(10, 1416)),
        ({"prompt_tokens": None, "input_tokens": 3}, Usage(3)),
        ({"cost": "0.0672", "quantity": 1, "unit_price": "0.0672"}, Usage(cost_micros=67_200)),
        ({"cost": 0.0672}, Usage(cost_micros=67_200)),
        ({"cost": 0}, Usage(cost_micros=0)),
        ({"cost": "", "total_tokens": 5}, Usage(total_tokens=5)),
        ({"cost": None, "total_tokens": 5}, Usage(total_tokens=5)),
        ({"cost": -1, "prompt_tokens": -1}, None),
        ({"cost": "free", "prompt_tokens": "many"}, None),
        ({"cost": 1e9, "prompt_tokens": 1e30}, None),
        ({"prompt_tokens": True, "completion_tokens": 1.5, "total_tokens": []}, None),
        ({}, None),
        (None, None),
        ([], None),
        ("none", None),
    ],
)
def test_usage_is_read_in_every_shape(usage: Any, read: Usage | None) -> None:
    """What makes no sense is as if it were not there: then the price list speaks."""
    assert polled(done(usage=usage)).usage == read
    assert polled(done()).usage is None


@pytest.mark.parametrize(
    ("cost", "micros"),
    [
        ("0.1", 100_000),
        ("1.005", 1_005_000),
        ("0.07", 70_000),
        ("0.29", 290_000),
        ("0.0000005", 1),
        ("0.00000049999999999999999999999999999999999", 0),
        ("0.0672004999999999999999999999999999999999999", 67_200),
        ("6.72e-2", 67_200),
        ("10000", 10_000_000_000),
        ("10000.01", None),
        ("1e400", None),
        ("1e-400", 0),
    ],
)
def test_money_is_exact_to_the_micro_dollar(cost: str, micros: int | None) -> None:
    """Binary floats would be off by a micro-dollar here and there, and the invoice would not match."""
    for text in (f'"{cost}"', cost):
        usage = polled(f'{{"status": "completed", "usage": {{"cost": {text}}}}}').usage
        assert (usage.cost_micros if usage else None) == micros


@given(st.decimals(min_value=0, max_value=10_000, places=6))
def test_a_cost_in_micro_dollars_comes_out_as_it_went_in(cost: Decimal) -> None:
    """As a number and as a string alike."""
    for text in (f'"{cost}"', str(cost)):
        usage = polled(f'{{"status": "done", "usage": {{"cost": {text}}}}}').usage
        assert usage is not None
        assert usage.cost_micros == int(cost * 1_000_000)


# Errors


@pytest.mark.parametrize(
    ("error", "read"),
    [
        ({"code": 5001095, "error_message": "internal"}, ProviderError("005001095", "internal")),
        ({"code": "005001095", "message": "internal"}, ProviderError("005001095", "internal")),
        ({"code": "5001095"}, ProviderError("005001095", '{"code": "5001095"}')),
        ({"code": 5001095.0, "message": "m"}, ProviderError("005001095", "m")),
        ({"code": 12345678901, "message": "m"}, ProviderError(None, "m")),
        ({"code": -1, "message": "m"}, ProviderError(None, "m")),
        ({"code": 0, "message": "m"}, ProviderError(None, "m")),
        ({"code": "rate_limited", "message": "slow"}, ProviderError(None, "rate_limited: slow")),
        ({"code": "rate_limited"}, ProviderError(None, "rate_limited")),
        ({"message": {"why": "x"}}, ProviderError(None, '{"why": "x"}')),
        ("plain", ProviderError(None, "plain")),
        (["a", "b"], ProviderError(None, '["a", "b"]')),
        (7, ProviderError(None, "7")),
        ({"reason": "x"}, ProviderError(None, '{"reason": "x"}')),
    ],
)
def test_an_error_is_read_in_every_shape(error: Any, read: ProviderError) -> None:
    """One code has one spelling, or reports would count it twice."""
    assert polled({"id": "t", "status": "failed", "error": error}).error == read


def test_a_message_is_one_short_printable_line() -> None:
    """It goes to terminals and tables: no colours, no line breaks, no book."""
    error = polled({"status": "failed", "error": "a\r\n\tb\x1b[31m\x00\x85c" + " x" * 5000}).error
    assert error is not None
    assert error.message.startswith("a b [31m c x")
    assert len(error.message) == MAX_LINE_CHARS
    assert error.message.endswith("…")


# What is kept


def test_metadata_is_kept_whole() -> None:
    """It is the provider's own record, and may settle a dispute."""
    metadata = {"completed_at": 1760000000.123, "in_queue_at": 1.5, "nested": {"a": [1, None, True, "é", 2**62]}}
    assert polled(done(metadata=metadata)).metadata == metadata
    assert polled(done(metadata=["x"])).metadata == {"metadata": ["x"]}
    assert polled(done(metadata=None)).metadata is None


def test_metadata_holds_nothing_that_can_not_be_stored() -> None:
    """NaN breaks JSON readers, NUL PostgreSQL, half characters UTF-8, and huge numbers 64 bits."""
    body = '{"status": "done", "metadata": {"a": NaN, "b": -Infinity, "c": "x\\u0000\\ud800", "d": 1e999, "e": 1%s}}'
    metadata = polled(body % ("0" * 5000)).metadata
    assert metadata is not None
    assert (metadata["a"], metadata["b"], metadata["c"], metadata["d"]) == (None, None, "x\ufffd\ufffd", "1E+999")
    assert isinstance(metadata["e"], str)
    json.dumps(metadata, allow_nan=False).encode()


def test_large_metadata_is_cut_and_says_so() -> None:
    """A megabyte a row, a million times, is a ledger that no longer opens."""
    metadata = polled(done(metadata={"small": 1, "large": "é" * 60_000, "also_small": 2})).metadata
    assert metadata == {"small": 1, "also_small": 2, LEFT_OUT: ["large"]}


def test_secrets_are_taken_out_of_all_that_is_kept() -> None:
    """Providers repeat the key in errors, and debugging gateways in headers and URLs."""
    body = {
        "id": "t",
        "status": SECRET,
        "error": {"code": SECRET, "message": f"bad key {SECRET} " + "x" * 480 + SECRET},
        "output": [
            {"type": "image", "url": f"https://a/?k={SECRET}", SECRET: SECRET},
            {"type": "text", "text": SECRET},
        ],
        "usage": {SECRET: SECRET},
        "metadata": {SECRET: [f"Bearer {SECRET}"]},
    }

    def scrub(text: str) -> str:
        return text.replace(SECRET, "***")

    submits = [(200, body_of(body)), (400, body_of(body)), (502, f"<i>{SECRET}</i>".encode()), (400, SECRET.encode())]
    read = [parse_submit(status, {}, answer, SPEC, scrub=scrub) for status, answer in submits]
    read += [parse_poll(status, {}, answer, SPEC, scrub=scrub) for status, answer in submits]
    assert "***" in repr(read)
    assert SECRET[:10] not in repr(read)


# Anything at all

NAMES = [
    *("id", "status", "output", "content", "type", "url", "text", "usage", "cost", "prompt_tokens", "total_tokens"),
    *("error", "code", "message", "error_message", "detail", "metadata", "progress", "created_at"),
]
WORDS = [
    "completed",
    "failed",
    "in_progress",
    "image",
    "text",
    "https://a/1.png",
    "0.0672",
    "005001095",
    "\ud800",
    "\x00",
]
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**30, max_value=10**60)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(WORDS)
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=30,
)
statuses = st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 429, 500, 502, 503, 999])


@given(statuses, st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, anything)) | anything)
def test_no_json_is_too_odd(status: int, answer: Any) -> None:
    """An exception here would leave a paid task without an owner."""
    check_both(status, json.dumps(answer).encode())


@given(
    statuses,
    st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ eE+-.0123456789aNIu\x00é', max_size=60).map(str.encode),
)
def test_no_bytes_are_too_odd(status: int, body: bytes) -> None:
    """Nor are bytes that are no JSON, or no text."""
    check_both(status, body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"id":' * 100_000,
        b'{"status": "done", "metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"status": "done", "metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
        b'{"status": "done", "usage": {"cost": ' + b"9" * 1_000_000 + b"}}",
        b'{"status": "done", "usage": {"cost": "' + b"9" * 1_000_000 + b'"}}',
        b'{"status": "done", "usage": {"cost": 1e999999999999999999999999}}',
        b'{"status": "done", "usage": {"cost": 1e-999999999999999999999999}}',
        b'\xef\xbb\xbf{"status": "done"}',
        b'{"status": "done", "error": "\xff\xfe\xed\xa0\x80"}',
        b"<" * 1_000_000,
        b"<style>" * 100_000,
    ],
    ids=[
        "deep lists",
        "deep objects",
        "900",
        "500",
        "digits",
        "text",
        "exponent",
        "small",
        "BOM",
        "bytes",
        "tags",
        "styles",
    ],
)
def test_the_known_poisons_do_no_harm(body: bytes) -> None:
    """Nesting that ends a stack, numbers that end a memory, markup that ends a regular expression."""
    for status in (200, 400, 502):
        check_both(status, body)


def check_both(status: int, body: bytes) -> None:
    """Read a body as both answers, and hold what comes out against what the ledger and the tables can take."""
    submit, poll = parse_submit(status, {}, body, SPEC), parse_poll(status, {}, body, SPEC)
    assert isinstance(submit, Accepted | Refused | Unknown)
    assert isinstance(poll, Polled | PollError)
    if isinstance(submit, Accepted):
        assert submit.task.id
        check_task(submit.task)
    if isinstance(poll, Polled):
        check_task(poll.task)
    for text in (getattr(submit, "message", ""), getattr(submit, "reason", ""), getattr(poll, "message", "")):
        assert len(text) <= MAX_LINE_CHARS + 100
        assert "\n" not in text
        text.encode()


def check_task(task: Task) -> None:
    """Every number in its range, every text fit for a database."""
    for kept in (task.metadata, task.raw_usage, *(entry.extra for entry in task.entries)):
        assert len(json.dumps(kept, allow_nan=False, ensure_ascii=False).encode()) <= MAX_STORED_BYTES
        assert "\\u0000" not in json.dumps(kept)
    for text in (task.id, task.status_word, task.text, *task.image_urls, task.error and task.error.message):
        if text is not None:
            assert "\x00" not in text
            text.encode()
    if task.error and task.error.code is not None:
        assert len(task.error.code) == 9
    if task.usage is not None:
        counts = (task.usage.prompt_tokens, task.usage.completion_tokens, task.usage.total_tokens)
        assert all(count is None or 0 <= count < 2**63 for count in (*counts, task.usage.cost_micros))
    assert task.progress is None or 0 <= task.progress <= 1
