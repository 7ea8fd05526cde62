"""The plan: what a run would do, told without doing any of it; and a person's approval of what it may cost."""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.shard_run import RunOptions, generate_shard
from nanobanana_pipeline.ledger.work import Rerun, first_to_begin
from nanobanana_pipeline.reporting import approval
from nanobanana_pipeline.reporting.approval import (
    Ruling,
    Saved,
    approval_of,
    approve,
    rule,
    rule_of_shard,
    save,
    saved_plans,
    unapproved,
)
from nanobanana_pipeline.reporting.costs import summary
from nanobanana_pipeline.reporting.draft import Wanted
from nanobanana_pipeline.reporting.plan import plan
from nanobanana_pipeline_tests.reporting.conftest import HALF_PRICE, World, rows


def test_everything_is_told_before_it_happens(world: Callable[..., World], ledger_url: str) -> None:
    """New, edited, removed, paid, duplicate, retried, held, failed, refused: each decides about somebody's money."""
    faults = (
        {"contains": "number 6", "fault": "refused_400_moderation"},
        {"contains": "number 7", "fault": "answer_lost"},
    )
    made = world(faults=faults, ledger_url=ledger_url)
    first = rows(9)
    made.catalogue("one", first)
    made.run()
    edited = [row | ({"prompt": "another thing"} if i == 0 else {}) for i, row in enumerate(first)][:-1]
    new = [{"prompt_id": f"q{i}", "prompt": f"a new thing {i}"} for i in range(3)]
    bad = [{"prompt_id": "bad", "prompt": "x", "aspect_ratio": "7:7"}]
    copy = [{"prompt_id": "copy", "prompt": "a picture of thing number 3"}]
    made.catalogue("one", [*edited, *new, *bad])
    made.catalogue("two", copy)

    before = summary(made.workspace)
    planned = plan(made.workspace)

    assert planned.counts == {
        "new": 4,
        "edited": 1,
        "retried": 0,
        "paid": 5,
        "in_flight": 0,
        "held": 1,
        "failed": 1,
        "removed": 1,
        "refused": 1,
        "duplicates": 1,
    }
    assert planned.to_make == 5
    assert summary(made.workspace) == before
    spent = before.cost_micros
    made.run()
    after = summary(made.workspace)
    assert after.attempts - before.attempts == 5
    assert after.cost_micros - spent <= planned.reserve_micros


def test_a_plan_is_the_same_before_and_after_registration(world: Callable[..., World]) -> None:
    """Materialising `prompts` in between must not make an approved plan another one."""
    made = world()
    made.catalogue("one", rows(4, samples=[1, 2]))
    made.run()
    changed = rows(6, samples=[1, 2])
    changed[0]["prompt"] = "changed"
    made.catalogue("one", changed)

    planned = plan(made.workspace)
    refresh(made.workspace)
    again = plan(made.workspace)

    assert planned.hash == again.hash
    assert planned.counts == again.counts
    assert planned.counts["edited"] == 1
    assert planned.counts["new"] == 3


def test_an_item_edited_back_costs_nothing(world: Callable[..., World]) -> None:
    """Its old image is still there, so a plan that counts it would frighten for nothing."""
    made = world()
    made.catalogue("one", rows(2))
    made.run()
    made.catalogue("one", [rows(2)[0] | {"prompt": "changed"}, rows(2)[1]])
    made.run()
    made.catalogue("one", rows(2))

    planned = plan(made.workspace)

    assert (planned.to_make, planned.counts["paid"]) == (0, 2)
    assert planned.cost == (0, 0, 0)


def test_a_limit_plans_so_many_items_and_names_other_work(world: Callable[..., World]) -> None:
    """`run --limit 2` and its plan must mean the same."""
    made = world()
    made.catalogue("one", rows(5))
    made.catalogue("two", rows(5, prompt="same"))

    whole, two, one = (plan(made.workspace, wanted=Wanted(limit=limit)) for limit in (None, 2, 1))

    assert (whole.to_make, two.to_make, one.to_make) == (10, 2, 1)
    assert len({whole.hash, two.hash, one.hash}) == 3
    assert two.cost.p90 < whole.cost.p10
    assert plan(made.workspace, ["two"]).to_make == 5
    with pytest.raises(UserError, match="there is no catalogue three"):
        plan(made.workspace, ["three"])


def test_a_limit_means_the_items_that_a_run_would_begin(world: Callable[..., World], ledger_url: str) -> None:
    """A pilot's price is that of its own items: the most urgent ones, wherever they stand, entered or not."""
    made = world(ledger_url=ledger_url, shard_size=2)
    made.catalogue("one", rows(6, priority=[0, 0, 0, 5, 0, 7], resolution=["0.5K"] * 3 + ["2K", "0.5K", "4K"]))
    made.catalogue("Two", rows(2, priority=[0, 6], resolution=["0.5K", "1K"]))

    from_files = plan(made.workspace, wanted=Wanted(limit=4))
    refresh(made.workspace)
    from_ledger = plan(made.workspace, wanted=Wanted(limit=4))

    assert from_files.by_resolution == {"4K": 1, "1K": 1, "2K": 1, "0.5K": 1}
    assert from_ledger.hash == from_files.hash
    with made.workspace.ledger.database.read() as connection:
        firsts = first_to_begin(connection, 4, rerun=None, unknown_too=False)
    # The fourth is the first of "Two", which comes before "one".
    assert firsts == {"one-000001": 1, "one-000002": 1, "Two-000000": 2}
    for shard, limit in firsts.items():
        made.run_shard(shard, limit=limit)
    sent = [row["resolution"] for row in made.workspace.tables.read("attempts").to_pylist()]
    assert sorted(sent) == ["0.5K", "1K", "2K", "4K"]


def test_a_limit_counts_what_is_sent_again_in_its_turn(world: Callable[..., World], ledger_url: str) -> None:
    """A pilot's plan and its run mean the same items, those of unknown outcome among them."""
    lost = [{"contains": f"number {n}", "fault": "answer_lost", "times": 1} for n in (1, 3)]
    made = world(faults=lost, ledger_url=ledger_url)
    wished = rows(7, resolution=["1K", "0.5K", "1K", "2K", "4K", "1K", "1K"])
    made.catalogue("one", wished[:4])
    made.run()
    made.catalogue("one", wished)

    planned = plan(made.workspace, wanted=Wanted(limit=3, resubmit_unknown=True))
    made.run(limit=3, resubmit_unknown=True)

    assert planned.by_resolution == {"0.5K": 1, "2K": 1, "4K": 1}
    sent = [row for row in made.workspace.tables.read("attempts").to_pylist() if row["run_id"] == "run-2"]
    assert sorted(row["resolution"] for row in sent) == ["0.5K", "2K", "4K"]


def test_an_overdue_item_that_a_run_sends_again_is_in_its_plan(world: Callable[..., World], ledger_url: str) -> None:
    """It was paid for again without being in any plan, and so without the approval that its price needed."""
    endless = [{"contains": f"number {n}", "fault": "never_ends"} for n in (1, 3)]
    made = world(faults=endless, ledger_url=ledger_url, shard_size=2, task_deadline_s=1)
    wished = rows(7, resolution=["1K", "0.5K", "1K", "2K", "4K", "1K", "1K"])
    made.catalogue("one", wished[:4])
    made.run()
    held = plan(made.workspace)
    with made.elsewhere(made.workspace.settings.model_copy(update={"on_unknown": "resubmit"})) as resubmitting:
        by_the_settings = plan(resubmitting)
    made.catalogue("one", wished)

    wanted = Wanted(limit=3, resubmit_unknown=True)
    from_files = plan(made.workspace, wanted=wanted)
    refresh(made.workspace)
    from_ledger = plan(made.workspace, wanted=wanted)
    with made.workspace.ledger.database.read() as connection:
        firsts = first_to_begin(connection, 3, rerun=None, unknown_too=True)
    for shard, limit in firsts.items():
        made.run_shard(shard, limit=limit, resubmit_unknown=True)

    # Unless somebody has said that it may be paid for again, runs only ask.
    assert (held.to_make, held.counts["in_flight"]) == (0, 2)
    assert by_the_settings.by_resolution == {"0.5K": 1, "2K": 1}
    assert from_files.by_resolution == {"0.5K": 1, "2K": 1, "4K": 1}
    assert from_ledger.hash == from_files.hash
    assert firsts == {"one-000000": 1, "one-000001": 1, "one-000002": 1}
    again = [row for row in made.workspace.tables.read("attempts").to_pylist() if row["run_id"] != "run-1"]
    assert sorted(row["resolution"] for row in again) == ["0.5K", "2K", "4K"]


def test_a_plan_and_a_run_agree_on_what_a_word_and_the_settings_send_again(world: Callable[..., World]) -> None:
    """A re-execution sends nothing again that its root sent again, whatever the settings say: no plan may count it."""
    made = world(faults=[{"fault": "answer_lost"}])
    made.catalogue("one", rows(1))
    made.run()
    made.run(resubmit_unknown=True)
    with made.elsewhere(made.workspace.settings.model_copy(update={"on_unknown": "resubmit"})) as resubmitting:
        settings, resumed, repeated, another = (
            plan(resubmitting, wanted=wanted).to_make
            for wanted in (
                Wanted(),
                Wanted(resubmit_unknown=True, root_run_id="run-2", run_id="run-2"),
                Wanted(resubmit_unknown=True, root_run_id="run-2", run_id="again"),
                Wanted(resubmit_unknown=True, root_run_id="run-3", run_id="run-3"),
            )
        )
        options = RunOptions(run_id="again", root_run_id="run-2", run_scope="run-2", resubmit_unknown=True)
        report = generate_shard(resubmitting, "one-000000", made._open, options)

    assert (settings, resumed, repeated, another) == (1, 1, 0, 1)
    assert (report.tally.submitted, report.tally.unknown) == (0, 1)
    assert [row["event"] for row in made.provider.book].count("billed") == 2


def test_a_first_forecast_holds_the_list_price(world: Callable[..., World]) -> None:
    """Before anything was made the spec is all there is; the interval must be honest about that."""
    made = world()
    made.catalogue("one", rows(100, resolution=["1K", "4K"]))

    planned = plan(made.workspace)

    list_price = 50 * 67_200 + 50 * 151_200
    assert planned.cost.p10 < list_price < planned.cost.p90
    assert planned.cost.p50 < planned.reserve_micros
    assert planned.by_resolution == {"1K": 50, "4K": 50}
    assert planned.forecast.experiences == 0
    assert "model spec" in planned.based_on
    assert planned.duration_s.p10 > 5


def test_a_forecast_learns_from_the_ledger(world: Callable[..., World]) -> None:
    """A price that is not the list's (a reseller's, say) must be in the plan as soon as it was seen."""
    made = world(faults=[{"fault": "usage_cost", "cost": "0.01"}])
    made.catalogue("one", rows(60))
    made.run()
    made.catalogue("two", rows(100, prompt=[f"other {i}" for i in range(100)]))

    planned = plan(made.workspace, ["two"])
    made.run()

    assert planned.forecast.experiences == 60
    assert planned.cost.p10 == pytest.approx(1_000_000, rel=0.01)
    assert planned.cost.p90 == pytest.approx(summary(made.workspace, catalogue="two").cost_micros, rel=0.01)
    assert planned.duration_s.p90 < 10


def test_a_plan_says_when_the_cap_has_no_room(world: Callable[..., World]) -> None:
    """A run that will stop half-way is better known beforehand."""
    made = world(budget_usd=Decimal(1))
    made.catalogue("one", rows(100))

    planned = plan(made.workspace)

    assert not planned.fits
    assert planned.room_micros == 1_000_000
    assert "room for $1.00" in planned.markdown
    assert planned.as_dict()["counts"]["new"] == 100
    assert "Simulated" in planned.markdown


def test_a_costly_run_waits_for_a_person(world: Callable[..., World]) -> None:
    """The cap is the last line; a person who is asked first never gets there."""
    made = world(approve_above_usd=Decimal("0.5"))
    made.catalogue("one", rows(4))
    cheap = Saved.of(plan(made.workspace))
    assert rule(made.workspace, cheap).refusal is None
    assert approval_of(made.workspace, cheap) == "not needed"
    made.catalogue("one", rows(30))
    costly = save(made.workspace, plan(made.workspace))

    refusal = rule(made.workspace, costly).refusal

    assert f"nanobanana approve {costly.hash}" in str(refusal)
    approve(made.workspace, costly.hash[:6])
    assert approval_of(made.workspace, Saved.of(plan(made.workspace))) == "given"
    assert rule(made.workspace, costly).refusal is None


def test_an_approval_covers_what_is_left_and_not_more(world: Callable[..., World]) -> None:
    """After a stop the rest has another hash: asking again is tiresome, and letting more through is worse."""
    made = world(approve_above_usd=Decimal("0.5"))
    made.catalogue("one", rows(60))
    approve(made.workspace, save(made.workspace, plan(made.workspace)).hash)

    made.run(limit=30)

    rest = plan(made.workspace)
    assert rest.to_make == 30
    assert approval_of(made.workspace, Saved.of(rest)) == "given"
    made.catalogue("one", rows(200))
    assert approval_of(made.workspace, Saved.of(plan(made.workspace))) == "needed"
    made.catalogue("other", rows(30, prompt="else"))
    assert approval_of(made.workspace, Saved.of(plan(made.workspace, ["other"]))) == "needed"


def test_the_parts_of_a_costly_plan_wait_together(world: Callable[..., World]) -> None:
    """Dagster makes a run of each shard: a plan of $2 in ten cheap parts must be asked about all the same."""
    made = world(approve_above_usd=Decimal(1), shard_size=3)
    made.catalogue("one", rows(30))
    refresh(made.workspace)
    work = made.workspace.ledger.shard_work()
    asked = unapproved(made.workspace, work)

    assert list(asked) == ["one"]
    assert asked == unapproved(made.workspace, work)
    part = partial(rule_of_shard, made.workspace, "one-000003")
    assert asked["one"] in str(part(Wanted(), capped=False).refusal)
    assert part(Wanted(limit=3), capped=False).refusal is None
    assert part(Wanted(), capped=True) == Ruling(asked["one"])
    approve(made.workspace, asked["one"])
    assert unapproved(made.workspace, work) == {}
    assert part(Wanted(), capped=False) == Ruling(asked["one"])


def test_overdue_items_that_the_settings_send_again_wait_for_an_approval(world: Callable[..., World]) -> None:
    """A catalogue of nothing else was paid for once more, and no question was asked."""
    made = world(faults=[{"fault": "never_ends"}], task_deadline_s=1)
    made.catalogue("one", rows(3))
    made.run()
    knobs = {"on_unknown": "resubmit", "approve_above_usd": Decimal("0.01")}
    settings = made.workspace.settings.model_copy(update=knobs)
    work = made.workspace.ledger.shard_work()
    with made.elsewhere(settings) as resubmitting:
        asked = unapproved(resubmitting, work)
        ruling = rule_of_shard(resubmitting, "one-000000", Wanted(), capped=False)
        plans = len(saved_plans(resubmitting))
    # Those that have had all their attempts are sent no more: no question, and no plan of nothing at each look.
    with made.elsewhere(settings.model_copy(update={"max_attempts": 1})) as exhausted:
        assert unapproved(exhausted, work) == {}
        assert rule_of_shard(exhausted, "one-000000", Wanted(), capped=False) == Ruling()
        assert len(saved_plans(exhausted)) == plans

    assert list(asked) == ["one"]
    assert asked["one"] in str(ruling.refusal)


def test_overdue_items_that_are_sent_again_are_part_of_what_is_left_of_a_plan(world: Callable[..., World]) -> None:
    """The plan counts them: without them what is left of it seemed half as dear as it was."""
    made = world(faults=[{"fault": "never_ends"}], task_deadline_s=1)
    made.catalogue("one", rows(3))
    made.run()
    made.catalogue("one", rows(6))
    refresh(made.workspace)
    settings = made.workspace.settings.model_copy(update={"on_unknown": "resubmit"})
    with made.elsewhere(settings) as resubmitting:
        whole = save(resubmitting, plan(resubmitting))
    most = Decimal(whole.cost_micros[2]) / 1_000_000
    with made.elsewhere(settings.model_copy(update={"approve_above_usd": most * 3 / 4})) as asking:
        ruling = rule_of_shard(asking, "one-000000", Wanted(), capped=False)

    assert whole.to_make == 6
    assert ruling.plan_hash == whole.hash
    assert f"nanobanana approve {whole.hash}" in str(ruling.refusal)


def test_a_plan_is_asked_about_no_more_once_little_of_it_is_left(world: Callable[..., World]) -> None:
    """The rest after `--max-cost` is as cheap as any plan of that size."""
    made = world(approve_above_usd=Decimal("0.5"))
    made.catalogue("one", rows(10))
    refresh(made.workspace)
    assert unapproved(made.workspace, made.workspace.ledger.shard_work())

    made.run(limit=7)

    assert unapproved(made.workspace, made.workspace.ledger.shard_work()) == {}


def test_what_is_to_be_paid_for_again_is_in_the_plan(world: Callable[..., World]) -> None:
    """`regenerate` pays for everything once more, each time: an approval of the first time is none of the second."""
    made = world(faults=[{"contains": "number 1", "fault": "refused_400_moderation"}])
    made.catalogue("one", rows(4))
    made.run()
    nothing, failed, whole = (
        plan(made.workspace, wanted=Wanted(rerun=rerun)) for rerun in (None, Rerun.RETRY_FAILED, Rerun.REGENERATE)
    )
    assert (nothing.to_make, failed.to_make, whole.to_make) == (0, 1, 4)

    made.run(rerun=Rerun.REGENERATE)

    again = plan(made.workspace, wanted=Wanted(rerun=Rerun.REGENERATE))
    assert again.to_make == 4
    assert again.hash != whole.hash


def test_what_a_regenerate_could_not_send_is_in_the_plan_of_its_repetition_alone(world: Callable[..., World]) -> None:
    """Nothing was tried, so the run executed once more pays for it; to any other run it is paid for."""
    made = world()
    made.catalogue("one", rows(2))
    made.run()
    made.provider.set_faults([{"fault": "unauthorised_401"}])
    with pytest.raises(UserError, match="NANOBANANA_API_KEY"):
        made.run(rerun=Rerun.REGENERATE)

    repeated = plan(made.workspace, wanted=Wanted(rerun=Rerun.REGENERATE, root_run_id="run-2"))

    assert repeated.to_make == 2
    assert plan(made.workspace).to_make == 0


def test_a_plan_that_another_process_forgets_is_no_failure(world: Callable[..., World]) -> None:
    """Of many runs that begin at once each keeps the latest plans: one met a plan that another had just removed.

    A link to nowhere is listed and then not there, as such a plan is.
    """
    made = world()
    made.catalogue("one", rows(3))
    kept = save(made.workspace, plan(made.workspace))
    Path(made.workspace.output, "plans", "gone.json").symlink_to("nowhere")

    assert [one.hash for one in saved_plans(made.workspace)] == [kept.hash]
    approval._forget(made.workspace, [kept, kept])
    assert saved_plans(made.workspace) == []


@pytest.mark.parametrize("text", [b"", b'{"hash": "to', b"\xff\x00", b"[]"])
def test_a_torn_plan_is_in_no_other_s_way(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    """Every command that asks for an approval, and every run's report, ended as a defect of ours until it was gone."""
    made = world(approve_above_usd=Decimal("0.01"))
    made.catalogue("one", rows(3))
    kept = save(made.workspace, plan(made.workspace))
    torn = Path(made.workspace.output, "plans", "torn.json")
    torn.write_bytes(text)

    assert approve(made.workspace, kept.hash).hash == kept.hash

    assert caplog.messages == [f"the plan {torn} can't be read, and counts as none: take it away, or plan anew"]
    assert approval_of(made.workspace, kept) == "given"


def test_what_is_free_can_be_planned(world: Callable[..., World], tmp_path: Path) -> None:
    """A price list of nothing, as of a trial, divided by it."""
    prices = tmp_path / "free.toml"
    prices.write_text(re.sub(r"(?<== )\d+\.\d+", "0.0", HALF_PRICE))
    made = world(prices=str(prices))
    made.catalogue("one", rows(2))
    assert plan(made.workspace).cost == (0, 0, 0)
    made.run()
    made.catalogue("one", rows(4))
    assert (plan(made.workspace).to_make, plan(made.workspace).cost) == (2, (0, 0, 0))


def test_an_unknown_plan_can_not_be_approved(world: Callable[..., World]) -> None:
    """A slip in the hash must not approve something else."""
    made = world()
    made.catalogue("one", rows(3))
    kept = save(made.workspace, plan(made.workspace))

    with pytest.raises(UserError, match=f"there is no plan 'zzz'; the latest are: {kept.hash}"):
        approve(made.workspace, "zzz")
    with pytest.raises(UserError):
        approve(made.workspace, "")

    assert [one.hash for one in saved_plans(made.workspace)] == [kept.hash]
    assert Path(made.workspace.output, "plans", f"{kept.hash}.json").exists()
