"""How the domain's ways to end become Dagster's: a user's error is one line, a stop ends the run as canceled."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from nanobanana_pipeline.errors import UserError


@contextmanager
def one_line_failures() -> Generator[None]:
    """Turn a `UserError` into a failure of the run that says it in one line and isn't tried again.

    Dagster prints the whole chain of causes, so there is none: its message says already what to do.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    else:
        return
    raise dg.Failure(description=message, allow_retries=False)
