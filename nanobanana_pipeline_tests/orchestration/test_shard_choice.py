"""Which shards an unattended pipeline starts: nothing lies forever, and nothing is tried in vain over and over."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from nanobanana_pipeline.ledger.budget import Caps
from nanobanana_pipeline.ledger.states import Holding, ItemState
from nanobanana_pipeline.ledger.work import ShardWork
from nanobanana_pipeline.orchestration.shard_choice import (
    End,
    Facts,
    PastOf,
    PastRun,
    Waiting,
    brake_s,
    choose,
    full_catalogues,
)

NOW = 1_000_000.0


def shard(name: str = "cat-000000", /, **states: int) -> ShardWork:
    """A shard with so many items in each state."""
    counted = {ItemState(state): count for state, count in states.items()}
    return ShardWork(name, name.rpartition("-")[0], int(name[-6:]), 10, counted)


def facts(**known: Any) -> Facts:
    """What is known besides past runs."""
    return replace(Facts(now=NOW), **known)


def past(*runs: tuple[End, float]) -> PastOf:
    """Past runs of each shard as (how it ended, how many seconds ago)."""
    return lambda shards: [PastRun(name, end, NOW - ago) for end, ago in runs for name in shards]


def started(work: ShardWork, known: Facts = facts(), runs: PastOf = past()) -> bool:  # noqa: B008 - frozen values
    """Whether this one shard is started."""
    return choose([work], known, runs, most=1).start == [work.shard]


def why(work: ShardWork, known: Facts = facts(), runs: PastOf = past()) -> Waiting:  # noqa: B008 - frozen values
    """Why this one shard isn't started."""
    choice = choose([work], known, runs, most=1)
    assert choice.start == []
    return next(iter(choice.waiting))


@pytest.mark.parametrize("state", ["pending", "deferred", "open", "overdue"])
def test_a_shard_with_work_left_is_started(state: str) -> None:
    """New items, those put off, and those that a killed run left open: each is reason enough."""
    assert started(shard(**{state: 1}))


def test_what_waits_for_an_approval_is_not_started_but_what_is_under_way_is() -> None:
    """A run that would be refused each half minute fills the page with red; what is in the air is paid for."""
    asked = facts(unapproved={"cat": "3f2a"})
    assert why(shard(pending=3), asked) is Waiting.UNAPPROVED
    assert started(shard(pending=3, open=1), asked)
    assert started(shard("other-000000", pending=3), asked)
    refused = past((End.UNAPPROVED, 1))
    assert started(shard(pending=3), runs=refused)
    assert why(shard(pending=3, open=1), asked, refused) is Waiting.PAUSING
    assert brake_s(refused(["cat-000000"]), NOW) == 0


@pytest.mark.parametrize("state", ["done", "failed", "unknown"])
def test_a_shard_with_nothing_to_do_is_left_alone(state: str) -> None:
    """What failed for good, and what only a person may decide, would be started again at each tick."""
    assert choose([shard(**{state: 5})], facts(), past(), most=1).start == []


def test_unknown_items_are_work_when_the_settings_say_resubmit() -> None:
    """With `on_unknown = resubmit` a run can do something about them."""
    assert started(shard(unknown=1), facts(resubmits_unknown=True))


def test_one_run_a_shard() -> None:
    """Two at once would only be in each other's way."""
    assert why(shard(pending=5), facts(active=frozenset({"cat-000000"}))) is Waiting.RUNNING


def test_a_shard_that_another_process_works_on_is_left_to_it() -> None:
    """`nanobanana run` may be at work in another terminal, in another DAGSTER_HOME."""
    assert why(shard(open=5), facts(at_work=frozenset({"cat-000000"}))) is Waiting.AT_WORK


def test_what_a_person_stopped_stays_stopped_until_its_catalogue_changes() -> None:
    """Thirty seconds after a person stops a run, a sensor that starts it again would be an enemy."""
    stopped = past((End.STOPPED, 3600), (End.ABANDONED, 7200))
    assert why(shard(open=5), facts(), stopped) is Waiting.STOPPED
    assert started(shard(open=5), facts(registered_at={"cat": NOW - 60}), stopped)
    assert started(shard(open=5), facts(), past((End.ABANDONED, 1), (End.STOPPED, 3600)))


def test_a_killed_run_is_resumed_at_once_but_not_for_ever() -> None:
    """A machine that went down is no reason to wait; a shard that kills its run each time is."""
    work = shard(open=5)
    assert started(work, facts(), past((End.ABANDONED, 1)))
    assert why(work, facts(), past((End.ABANDONED, 20), (End.ABANDONED, 60))) is Waiting.PAUSING
    assert started(work, facts(), past((End.ABANDONED, 31), (End.ABANDONED, 60)))
    assert why(work, facts(), past(*[(End.ABANDONED, 60.0)] * 4)) is Waiting.PAUSING
    assert started(work, facts(), past(*[(End.ABANDONED, 3601.0)] * 20))


def test_a_run_that_failed_for_a_person_to_mend_is_tried_ever_more_rarely() -> None:
    """The person may come in five minutes or tomorrow: neither ten thousand runs nor none."""
    work = shard(pending=5)
    assert why(work, facts(), past((End.BROKEN, 290))) is Waiting.PAUSING
    assert started(work, facts(), past((End.BROKEN, 310)))
    assert why(work, facts(), past((End.BROKEN, 310), (End.BROKEN, 900))) is Waiting.PAUSING
    assert started(work, facts(), past((End.BROKEN, 610), (End.BROKEN, 900)))


def test_deferred_work_is_not_tried_every_tick() -> None:
    """A run that finds no room says so once in ten minutes, not twice a minute."""
    assert why(shard(deferred=5), facts(), past((End.SUCCEEDED, 300))) is Waiting.PAUSING
    assert started(shard(deferred=5), facts(), past((End.SUCCEEDED, 601)))
    assert started(shard(pending=5), facts(), past((End.SUCCEEDED, 61)))


def test_who_comes_by_once_a_night_waits_for_no_pause() -> None:
    """What was put off a minute before would be put off for a day more; a person's stop holds at night as well."""

    def at_night(*runs: tuple[End, float]) -> list[str]:
        return choose([shard(deferred=5)], facts(), past(*runs), most=1, pausing=False).start

    assert at_night((End.SUCCEEDED, 60)) == ["cat-000000"]
    assert at_night((End.BROKEN, 60), (End.BROKEN, 120)) == ["cat-000000"]
    assert at_night((End.STOPPED, 60)) == []


def test_nothing_new_is_started_without_room_under_the_cap() -> None:
    """It would only be deferred. What is under way is paid for already, so it is finished."""
    full = facts(full_catalogues=frozenset({"cat"}))
    assert why(shard(pending=5), full) is Waiting.NO_ROOM
    assert why(shard(deferred=5), full) is Waiting.NO_ROOM
    assert started(shard(open=1, pending=5), full)


def test_what_is_under_way_goes_first_and_the_rest_in_order() -> None:
    """Images that are paid for expire at the provider."""
    shards = [shard("cat-000000", pending=1), shard("cat-000001", pending=1), shard("cat-000002", open=1)]
    choice = choose(shards, facts(), past(), most=2)
    assert choice.start == ["cat-000002", "cat-000000"]
    assert choice.waiting == {Waiting.IN_TURN: 1}


def test_the_more_urgent_shard_goes_first_but_after_what_is_under_way() -> None:
    """The catalogue's column `priority` says what a person waits for."""
    plain, urgent = shard("cat-000000", pending=1), replace(shard("cat-000007", pending=1), priority=5)
    begun = shard("cat-000009", open=1)
    assert choose([plain, urgent, begun], facts(), past(), most=3).start == ["cat-000009", "cat-000007", "cat-000000"]


def test_past_runs_are_looked_up_a_few_shards_at_a_time_and_no_further_than_needed() -> None:
    """A tick has sixty seconds; ten thousand shards have a hundred thousand runs."""
    shards = [shard(f"cat-{number:06}", pending=1) for number in range(10_000)]
    asked: list[str] = []

    def past_of(some: Sequence[str]) -> list[PastRun]:
        asked.extend(some)
        return [PastRun(name, End.SUCCEEDED, NOW - 1) for name in some if name < "cat-000200"]

    choice = choose(shards, facts(), past_of, most=12)
    assert choice.start[0] == "cat-000200"
    assert len(choice.start) == 12
    assert len(asked) == 250
    assert str(choice) == "9,788: its turn comes when others are done; 200: tried a short while ago"


def test_when_every_run_fails_alike_nothing_is_started_for_a_while() -> None:
    """A wrong key fails each of ten thousand shards; one run an hour tells it as well."""
    assert brake_s([], NOW) == 0
    assert brake_s([PastRun("a", End.BROKEN, NOW - 10)], NOW) == 50
    assert brake_s([PastRun("a", End.BROKEN, NOW - 61)], NOW) == 0
    assert brake_s([PastRun(name, End.BROKEN, NOW - 10) for name in "abc"], NOW) == 230
    assert brake_s([PastRun("a", End.SUCCEEDED, NOW), PastRun("b", End.BROKEN, NOW - 1)], NOW) == 0
    assert brake_s([PastRun(str(n), End.BROKEN, NOW) for n in range(50)], NOW) == 3600


def test_room_is_reckoned_with_everything_that_is_held() -> None:
    """What is reserved or at risk may yet be spent: it takes room like what is spent."""
    counters = {"day:2026-11-22": Holding(reserved=40, spent=40, at_risk=10), "catalogue:a": Holding(spent=95)}
    names = ["a", "b"]

    def full(needed: int, **caps: int) -> frozenset[str]:
        return full_catalogues(names, Caps(**caps), counters, day="2026-11-22", needed=needed)

    assert full(10, day=100) == frozenset()
    assert full(11, day=100) == {"a", "b"}
    assert full(10, catalogue=100) == {"a"}
    assert full(5, catalogue=100) == frozenset()
    assert full(1_000_000) == frozenset()
