"""How the domain's ways to end become Dagster's: a user's error is one line, a stop ends the run as canceled."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import outages
from nanobanana_pipeline.orchestration.instance import sign_run


@contextmanager
def at_work(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> Generator[None]:
    """Do a step's work: the run is signed, so that its death can be told, and its failures are one line.

    That it waits for the ledger stands in its log.
    """
    sign_run(context.instance, context.run)
    with one_line_failures(), outages.told(context.log.warning):
        yield


@contextmanager
def one_line_failures() -> Generator[None]:
    """Turn a `UserError` into a failure of the run that says it in one line and isn't tried again."""
    try:
        yield
    except UserError as error:
        # Dagster shows the whole chain of causes; this one says all there is to say.
        raise dg.Failure(description=str(error), allow_retries=False) from None
