"""The kinds an error can have: the vocabulary that model specs, the client, the engine and the tables share.

Which code or status has which kind is data (the model spec); what to do about a kind is the engine's business. Neither
is here.
"""

from enum import StrEnum
from typing import Final


class ErrorKind(StrEnum):
    """What went wrong, in the one sense that decides what may be done next."""

    RETRYABLE = "retryable"
    """Nothing was billed; asking again is safe."""
    RATE_LIMITED = "rate_limited"
    """Nothing was billed; ask again later and slower."""
    INVALID_REQUEST = "invalid_request"
    """The provider will never accept this request as it stands."""
    CONTENT_POLICY = "content_policy"
    """Refused for what it asks for; asking again gets the same answer."""
    AUTH = "auth"
    """The key is wrong or may not do this: the whole run stops."""
    BALANCE = "balance"
    """The account has no money left: the whole run stops."""
    NOT_FOUND = "not_found"
    """The model or the task is not known (or not known yet)."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """Sent, and no answer that says whether it was accepted: it may have been billed."""
    PROVIDER_FAILURE = "provider_failure"
    """The task was accepted and ended as failed."""
    BAD_OUTPUT = "bad_output"
    """The task completed, but no good image could be had from it."""
    DEADLINE = "deadline"
    """The task did not end in time; it may still complete and be billed."""


PUT_OFF: Final = (ErrorKind.RETRYABLE, ErrorKind.RATE_LIMITED, ErrorKind.AUTH, ErrorKind.BALANCE)
"""Of a refused submit: about the moment, the key or the account. The request itself is still to be tried."""
