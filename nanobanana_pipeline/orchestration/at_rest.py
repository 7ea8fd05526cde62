"""A run that finds what the last one found: nothing to do. Answered without Dagster, which takes longer to load.

Only what can be told at a glance is looked at. Whatever is not as it was then is the whole run's to find out, and so is
what is wrong: here it only means that this is no run at rest.
"""

import time

from nanobanana_pipeline.generation import rest
from nanobanana_pipeline.generation.access import expected_stamp
from nanobanana_pipeline.generation.intake import all_registered
from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.orchestration.order import Order, shares
from nanobanana_pipeline.orchestration.outcome import Outcome
from nanobanana_pipeline.reporting.costs import CostSummary
from nanobanana_pipeline.settings import Settings


def outcome_at_rest(settings: Settings, order: Order) -> Outcome | None:
    """What there is to say when nothing has changed since a run found nothing to do; None when a run must look."""
    began = time.monotonic()
    if order.catalogue is not None or order.items:
        return None
    with Workspace.open(settings) as workspace:
        mark = rest.look(workspace)
        found = rest.found_at(workspace, mark)
        if found is None or not all_registered(workspace):
            return None
        if shares(order, workspace.ledger.shard_work(), on_unknown=settings.on_unknown):
            return None
        stamp = expected_stamp(workspace)
        if stamp is None:
            return None
        workspace.ledger.claim(stamp)
        # Last, as it may write: then the tables are no longer what the mark says.
        mend_tables(workspace, current=True)
        if rest.look(workspace) != mark:
            return None
        return Outcome(
            stamp,
            workspace.output,
            standing=CostSummary(**found["standing"]),
            rejected_rows=found["rejected_rows"],
            duration_s=time.monotonic() - began,
        )
