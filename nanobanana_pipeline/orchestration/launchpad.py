"""What a person can set in the launchpad for a run of generation, with its bounds, defaults and help.

How the bounds come to be checked before there is a run is told in `bounds`.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from nanobanana_pipeline.ledger.work import Rerun


class GenerationConfig(BaseModel):
    """What one run of a shard may do beyond making the images that are missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int | None = Field(
        default=None,
        ge=0,
        le=10_000_000,
        description="Begin at most this many new images in this shard: a pilot. The next run goes on with the rest, "
        "and pays for nothing twice; re-executing this one begins no more than were asked for. 0: only finish what is "
        "under way. Empty: no limit.",
    )
    retry_failed: bool = Field(
        default=False,
        description="Try failed items again, once each, at their usual price. A failed attempt is mostly not billed.",
    )
    resubmit_unknown: bool = Field(
        default=False,
        description="Send again, once each, what was sent without an answer. The lost ones may have been billed: "
        "this may pay for them twice. See the check `no_unknown_outcomes` first.",
    )
    regenerate: bool = Field(
        default=False,
        description="Make every image of the shard anew, once, and pay for each again. Re-executing the run repeats "
        "nothing.",
    )
    items: str = Field(
        default="",
        description="Begin only these items, by their item_id with spaces between (see the table `results`); with "
        "regenerate, make these anew and no others. Empty: all of the shard.",
    )
    allow_duplicates: bool = Field(
        default=False,
        description="Go on although most of the catalogue has images under another catalogue's name, as after a file "
        "was renamed. It pays for them again.",
    )
    max_cost_usd: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Spend at most this many US dollars in this run (in a backfill: over all of its runs). What "
        "doesn't fit is deferred. Empty: NANOBANANA_BUDGET_RUN_USD.",
    )

    @classmethod
    def of(cls, op_config: Mapping[str, Any]) -> Self:
        """The config of a running operation."""
        return cls.model_validate(dict(op_config))

    @property
    def rerun(self) -> Rerun | None:
        """What is to be paid for again."""
        return Rerun.of(regenerate=self.regenerate, retry_failed=self.retry_failed)

    @property
    def chosen_items(self) -> tuple[str, ...]:
        """The items that may be begun; none is all of them."""
        return tuple(self.items.split())

    @property
    def max_cost_micros(self) -> int | None:
        """`max_cost_usd` in micro-dollars, exact to the digits that were typed."""
        return None if self.max_cost_usd is None else int(Decimal(str(self.max_cost_usd)).scaleb(6))
