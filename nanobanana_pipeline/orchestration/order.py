"""What one command asks for, and each shard's part of it. Knows no Dagster: only what the ledger says is left to do."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline.ledger.work import NamedItem, Rerun, ShardWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one command asks for; `options` are those of the generation's launchpad."""

    catalogue: str | None = None
    limit: int | None = None
    retry_failed: bool = False
    resubmit_unknown: bool = False
    regenerate: bool = False
    items: tuple[str, ...] = ()
    """The only items that may be begun, by item_id or prompt_id; none given is all of them."""
    allow_duplicates: bool = False
    max_cost_usd: Decimal | None = None

    @property
    def rerun(self) -> Rerun | None:
        """What is to be paid for again."""
        return Rerun.of(regenerate=self.regenerate, retry_failed=self.retry_failed)

    def resubmits(self, on_unknown: str) -> bool:
        """Whether what was never answered is sent again."""
        return self.resubmit_unknown or on_unknown == "resubmit"

    def wants(self, work: ShardWork, *, on_unknown: str) -> bool:
        """Whether a run of the shard could do anything."""
        count = work.states.get
        return bool(
            work.left
            or (self.resubmits(on_unknown) and count(ItemState.UNKNOWN))
            or ((self.retry_failed or self.regenerate) and count(ItemState.FAILED))
            or (self.regenerate and count(ItemState.DONE))
        )

    def new_items(self, work: ShardWork) -> int:
        """Items of the shard for which new attempts may be made."""
        states = [ItemState.PENDING, ItemState.DEFERRED]
        states += [ItemState.FAILED] * (self.retry_failed or self.regenerate) + [ItemState.DONE] * self.regenerate
        return sum(work.states.get(state, 0) for state in states)


@dataclass(frozen=True, slots=True)
class Share:
    """A shard's part of the work: how many items may be begun there (None: all), and how many there are to do.

    `chosen` are the only ones (by item_id) that may be begun; none is any of them.
    """

    shard: str
    limit: int | None
    items: int
    chosen: tuple[str, ...] = ()


def shares(
    order: Order, work: Sequence[ShardWork], firsts: Mapping[str, int] | None = None, *, on_unknown: str
) -> list[Share]:
    """Each shard's part, by priority, then in order of catalogue and number: the same answer for the same ledger.

    With a limit, `firsts` says how many of the items that have their turn are in each shard. A shard without any still
    has its turn when attempts of it are open: they are paid for.
    """
    found: list[Share] = []
    for shard in sorted(work, key=lambda shard: -shard.priority):
        if not order.wants(shard, on_unknown=on_unknown):
            continue
        open_, overdue = (shard.states.get(state, 0) for state in (ItemState.OPEN, ItemState.OVERDUE))
        if firsts is None:
            found.append(Share(shard.shard, None, order.new_items(shard) + open_ + overdue))
        elif (part := firsts.get(shard.shard, 0)) or open_ or overdue:
            # Of the overdue ones, those that may be sent again are among the first.
            others = max(0, overdue - part) if order.resubmits(on_unknown) else overdue
            found.append(Share(shard.shard, part, part + open_ + others))
    return found


def shares_of(order: Order, named: Sequence[NamedItem]) -> list[Share]:
    """Each shard's part when only some items are meant, `named` as the ledger knows them; the limit is for all shards.

    Raises `UserError` for a name that no item has.
    """
    unknown = set(order.items) - {item.name for item in named}
    if unknown:
        raise UserError(
            f"no item of the catalogue is called {', '.join(sorted(unknown))}: give an item_id or a prompt_id of "
            "the table `results`"
        )
    chosen: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for item in named:
        # Once, however often it was named: by its id, and by that of its prompt.
        chosen[item.shard][item.item_id] = None
    found: list[Share] = []
    left = order.limit
    for shard, ids in sorted(chosen.items()):
        if left is None:
            found.append(Share(shard, None, len(ids), tuple(ids)))
        elif part := min(left, len(ids)):
            found.append(Share(shard, part, part, tuple(ids)))
            left -= part
    return found
