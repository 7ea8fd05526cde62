"""What an error is, from the model spec's data: which of these stop a run, cost money, or are tried again."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobanana_pipeline.generation.answers import ProviderError
from nanobanana_pipeline.generation.errors import (
    MAX_RETRY_AFTER_S,
    RETRY_SUBMIT,
    STOPS_RUN,
    kind_of_poll_status,
    kind_of_refusal,
    kind_of_submit_status,
    kind_of_task_error,
    retry_after_s,
)
from nanobanana_pipeline.model_specs.kinds import ErrorKind
from nanobanana_pipeline.model_specs.loader import load_spec

SPEC = load_spec()
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def said(message: str, code: str | None = None) -> ProviderError:
    """An error in the provider's words."""
    return ProviderError(code, message)


@pytest.mark.parametrize(
    ("status", "outcome", "kind"),
    [
        (400, "refused", ErrorKind.INVALID_REQUEST),
        (401, "refused", ErrorKind.AUTH),
        (402, "refused", ErrorKind.BALANCE),
        (404, "refused", ErrorKind.NOT_FOUND),
        (422, "refused", ErrorKind.INVALID_REQUEST),
        (429, "refused", ErrorKind.RATE_LIMITED),
        (500, "refused", ErrorKind.RETRYABLE),
        (503, "refused", ErrorKind.RETRYABLE),
        (408, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (502, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (504, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (599, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (101, "unknown", ErrorKind.UNKNOWN_OUTCOME),
        (999, "unknown", ErrorKind.UNKNOWN_OUTCOME),
    ],
)
def test_a_submit_is_judged_by_its_status(status: int, outcome: str, kind: ErrorKind) -> None:
    """Where nothing is known of a status, unknown is the answer that can't cost twice."""
    assert kind_of_submit_status(status, None, SPEC)[:2] == (outcome, kind)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_words_do_not_change_what_a_servers_error_means(status: int) -> None:
    """A gateway's page that happens to say "safety" must not turn an unknown into a refusal."""
    plain = kind_of_submit_status(status, None, SPEC)
    assert kind_of_submit_status(status, said("safety: access denied, balance 0", "000110001"), SPEC) == plain


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Insufficient balance", ErrorKind.BALANCE),
        ("Access denied: insufficient balance, please top up", ErrorKind.BALANCE),
        ("You have no credits left", ErrorKind.BALANCE),
        ("You are not permitted to use this model", ErrorKind.AUTH),
        ("Forbidden", ErrorKind.AUTH),
        ("Permission denied", ErrorKind.AUTH),
        ("This API key may not call this", ErrorKind.AUTH),
        ("nope", ErrorKind.BALANCE),
    ],
)
def test_a_403_is_about_money_or_about_the_key(message: str, kind: ErrorKind) -> None:
    """The provider has one status for both; the user must hear the right one, and both stop the run."""
    assert kind_of_submit_status(403, said(message), SPEC)[1] is kind
    assert kind_of_poll_status(403, said(message), SPEC) is kind
    assert kind in STOPS_RUN


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (said("input image rejected", "000110001"), ErrorKind.CONTENT_POLICY),
        (said("Your prompt was flagged by our content policy"), ErrorKind.CONTENT_POLICY),
        (said("image could not be fetched", "000190000"), ErrorKind.INVALID_REQUEST),
        (said("prompt is too long"), ErrorKind.INVALID_REQUEST),
        (said("Insufficient balance"), ErrorKind.BALANCE),
    ],
)
def test_a_400_may_be_about_more_than_its_shape(error: ProviderError, kind: ErrorKind) -> None:
    """A refusal on content must not be tried again, and an empty account must stop the run."""
    assert kind_of_submit_status(400, error, SPEC)[:2] == ("refused", kind)


def test_a_listed_code_says_more_than_403() -> None:
    """Moderation sometimes answers 403: it is about one prompt, so the run goes on."""
    assert kind_of_submit_status(403, said("forbidden", "000110001"), SPEC)[1] is ErrorKind.CONTENT_POLICY


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (said("synchronous generation error", "005001098"), ErrorKind.PROVIDER_FAILURE),
        (said("sensitive", "000110001"), ErrorKind.CONTENT_POLICY),
        (said("slow down", "000000429"), ErrorKind.RATE_LIMITED),
        (said("bad key", "000000401"), ErrorKind.AUTH),
        (said("not permitted", "000000403"), ErrorKind.AUTH),
        (said("insufficient balance"), ErrorKind.BALANCE),
        (said("blocked for safety"), ErrorKind.CONTENT_POLICY),
        (said("timed out", "000000504"), ErrorKind.PROVIDER_FAILURE),
        (said("something"), ErrorKind.PROVIDER_FAILURE),
    ],
)
def test_an_error_in_the_place_of_a_task_has_a_kind(error: ProviderError, kind: ErrorKind) -> None:
    """It comes with HTTP 200, so its code or words are all there is; it never stays unknown."""
    assert kind_of_refusal(error, SPEC) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, ErrorKind.AUTH),
        (404, ErrorKind.NOT_FOUND),
        (429, ErrorKind.RATE_LIMITED),
        (400, ErrorKind.RETRYABLE),
        (307, ErrorKind.RETRYABLE),
        (500, ErrorKind.RETRYABLE),
        (502, ErrorKind.RETRYABLE),
    ],
)
def test_a_poll_is_judged_by_its_status(status: int, kind: ErrorKind) -> None:
    """No status of a poll means that the task has failed."""
    assert kind_of_poll_status(status, None, SPEC) is kind


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("005001095", "internal generation error", ErrorKind.PROVIDER_FAILURE),
        ("005001097", "upstream says: safety", ErrorKind.PROVIDER_FAILURE),
        ("000110001", "", ErrorKind.CONTENT_POLICY),
        (None, "The image was withheld for SAFETY reasons", ErrorKind.CONTENT_POLICY),
        ("000999999", "what now", ErrorKind.PROVIDER_FAILURE),
        (None, "", ErrorKind.PROVIDER_FAILURE),
    ],
)
def test_a_failed_task_is_judged_by_code_then_words(code: str | None, message: str, kind: ErrorKind) -> None:
    """The model spec's list decides; nothing of it is billed until an invoice says otherwise."""
    assert kind_of_task_error(code, message, SPEC) == (kind, False)


def test_whether_a_failure_is_billed_is_data() -> None:
    """When an invoice shows that a code is billed after all, one line of the model spec mends it."""
    billed = SPEC.errors.codes["005001095"].model_copy(update={"billed": True})
    errors = SPEC.errors.model_copy(update={"codes": {"005001095": billed}})
    spec = SPEC.model_copy(update={"errors": errors})
    assert kind_of_task_error("005001095", "", spec) == (ErrorKind.PROVIDER_FAILURE, True)


def test_what_stops_a_run_is_not_what_is_tried_again() -> None:
    """A kind in both would be a run that stops and goes on."""
    assert not STOPS_RUN & RETRY_SUBMIT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("99999999", MAX_RETRY_AFTER_S),
        ("9" * 5000, MAX_RETRY_AFTER_S),
        ("inf", MAX_RETRY_AFTER_S),
        (format_datetime(datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC), usegmt=True), 30.0),
        (format_datetime(datetime(2026, 3, 1, 11, 0, tzinfo=UTC), usegmt=True), 0.0),
        (format_datetime(datetime(2099, 3, 1, tzinfo=UTC), usegmt=True), MAX_RETRY_AFTER_S),
        ("Sun, 01 Mar 2026 12:00:30", 30.0),
        ("-5", None),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_a_wait_is_read_in_both_its_forms_and_bounded(value: str, seconds: float | None) -> None:
    """A provider that asks for a day must not make a run hang for a day."""
    assert retry_after_s({"retry-after": value}, now=NOW.timestamp()) == seconds
    assert retry_after_s({}, now=NOW.timestamp()) is None


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} -?\d{1,12} \d+:\d+:\d+ \S*"))
def test_no_header_makes_it_fail(value: str) -> None:
    """It is read on the way out of an error, where another error would hide the first."""
    seconds = retry_after_s({"retry-after": value})
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S
