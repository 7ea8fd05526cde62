"""The main job without Dagster: prompts in, images and tables out, and nothing paid twice however often it is run."""

import sqlite3
import statistics
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Any

import pytest

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.admissions import Admissions
from nanobanana_pipeline.generation.answers import Accepted, Refused, Unknown
from nanobanana_pipeline.generation.client import HttpProvider
from nanobanana_pipeline.generation.engine import Engine
from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.shard_run import generate_shard
from nanobanana_pipeline.generation.stopping import RunInterruptedError, StopSwitch
from nanobanana_pipeline.ledger.work import Rerun
from nanobanana_pipeline_tests.catalogue.samples import write_mixed_catalogue
from nanobanana_pipeline_tests.generation.pipelines import QUICK, Pipeline


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """So many rows of a catalogue."""
    return [
        {"prompt_id": f"p{n}", "prompt": f"a picture of {n}", "aspect_ratio": "1:1"}
        for n in range(start, start + count)
    ]


def test_every_prompt_becomes_a_verified_image_and_the_books_agree(pipeline: Pipeline) -> None:
    """The promise of the whole product, in small."""
    pipeline.write([*rows(8), {"prompt_id": "pair", "prompt": "two of them", "samples": 2}])
    pipeline.run()
    results = pipeline.results()
    assert len(results) == 10
    assert {row["status"] for row in results.values()} == {"succeeded"}
    assert {row["image_count"] for row in results.values()} == {1}
    sizes = {(row["width"], row["height"]) for row in pipeline.table("images") if row["prompt_id"] != "pair"}
    assert sizes == {(1024, 1024)}
    pipeline.assert_books_agree()


def test_a_second_run_submits_nothing_and_changes_no_row(pipeline: Pipeline) -> None:
    """Done is done: running again is free."""
    pipeline.write(rows(4))
    pipeline.run()
    before = pipeline.results()
    pipeline.run()
    assert pipeline.results() == before
    assert len(pipeline.accepted()) == 4


def test_only_what_was_edited_or_added_is_paid_for(pipeline: Pipeline) -> None:
    """Edit one: one submit. Add some: as many. Remove one: its row stays, inactive, with its cost."""
    pipeline.write(rows(5))
    pipeline.run()
    edited = rows(8)
    edited[1]["prompt"] = "edited"
    del edited[3]
    pipeline.write(edited)
    pipeline.run()
    assert sorted(pipeline.accepted()[5:]) == ["a picture of 5", "a picture of 6", "a picture of 7", "edited"]
    gone = pipeline.results()["p3", 1]
    assert (gone["active"], gone["status"]) == (False, "succeeded")
    twice = pipeline.results()["p1", 1]
    assert twice["attempts"] == 2
    assert twice["cost_usd"] == sum(row["cost_usd"] for row in pipeline.attempts("p1"))
    pipeline.assert_books_agree()


def test_a_limit_is_a_pilot_and_the_rest_follows_without_paying_for_it_again(pipeline: Pipeline) -> None:
    """First a few to look at, then the others."""
    pipeline.write(rows(6))
    pipeline.run(limit=2)
    assert len(pipeline.accepted()) == 2
    pipeline.run()
    assert sorted(pipeline.accepted()) == sorted(row["prompt"] for row in rows(6))


def test_a_pilot_that_is_started_again_goes_on_with_its_own_items(pipeline: Pipeline) -> None:
    """Dagster starts a killed run anew with all of its config, and a re-execution copies it: $10, not $20."""
    pipeline.write(rows(6))
    pipeline.simulator.set_faults([{"fault": "refused_400_moderation", "prompt": "a picture of 0"}])
    for _ in range(3):
        pipeline.run(limit=3, root_run_id="the-same-root")
    assert len(pipeline.accepted()) == 3
    pipeline.run(limit=3)
    assert sorted(pipeline.accepted()) == sorted(row["prompt"] for row in rows(6)[1:])


def test_regenerate_pays_again_once_and_keeps_both_costs(pipeline: Pipeline) -> None:
    """A person who wants another picture gets one, and the books show two."""
    pipeline.write(rows(2))
    pipeline.run()
    for _ in range(2):
        pipeline.run(rerun=Rerun.REGENERATE, root_run_id="the-same-root")
    assert len(pipeline.accepted()) == 4
    assert [row["state"] for row in pipeline.attempts("p0")] == ["stored", "stored"]
    assert len(pipeline.table("images")) == 2
    pipeline.assert_books_agree()


@pytest.mark.parametrize(
    ("fault", "states"),
    [
        ("failed", ["stored", "failed", "failed", "failed"]),
        ("refused_400_moderation", ["stored", "refused"]),
        ("error_500", ["stored", "refused"]),
        ("text_only", ["stored", "unusable"]),
    ],
)
def test_an_image_stays_when_nothing_came_of_making_it_anew(pipeline: Pipeline, fault: str, states: list[str]) -> None:
    """Whoever wants a better picture must not lose the one that was paid for; what the try cost is in the books."""
    pipeline.write(rows(1))
    pipeline.run()
    images = pipeline.table("images")
    pipeline.simulator.set_faults([{"fault": fault}])
    pipeline.run(rerun=Rerun.REGENERATE)
    sent = len(pipeline.accepted())
    (row,) = pipeline.results().values()
    attempts = pipeline.attempts("p0")
    assert [attempt["state"] for attempt in attempts] == states
    assert (row["status"], row["image_path"], row["attempts"]) == ("succeeded", images[0]["path"], len(states))
    assert row["cost_usd"] == sum(attempt["cost_usd"] for attempt in attempts)
    assert pipeline.table("images") == images
    pipeline.simulator.set_faults([])
    pipeline.run()
    assert len(pipeline.accepted()) == sent
    pipeline.assert_books_agree()


def refused_key(pipeline: Pipeline) -> None:
    """Regenerate with a key that is not taken."""
    pipeline.simulator.set_faults([{"fault": "unauthorised_401"}])
    with pytest.raises(UserError, match="NANOBANANA_API_KEY"):
        pipeline.run(rerun=Rerun.REGENERATE, root_run_id="the-same-root")


def stopped_while_pushed_back(pipeline: Pipeline) -> None:
    """Regenerate, and stop while the provider wants to be asked later."""
    pipeline.simulator.set_faults([{"fault": "rate_limited_429", "retry_after": 600}])
    stop = StopSwitch()

    def stop_once_refused() -> None:
        pipeline.simulator.wait_for("refused")
        stop.throw()

    with ThreadPoolExecutor(1) as thread:
        stopping = thread.submit(stop_once_refused)
        with pytest.raises(RunInterruptedError):
            # Later runs are another account's, and have not been told to wait.
            pipeline.run(stop=stop, rerun=Rerun.REGENERATE, root_run_id="the-same-root", account="pushed back")
        stopping.result()


@pytest.mark.parametrize("interrupt", [refused_key, stopped_while_pushed_back])
def test_a_regenerate_that_sent_nothing_leaves_the_images_and_is_made_up_for(
    pipelines: Callable[..., Pipeline], interrupt: Callable[[Pipeline], None]
) -> None:
    """The old picture counts until there is a new one; only the same run once more may pay for that."""
    pipeline = pipelines()
    pipeline.write(rows(2))
    pipeline.run()
    images = pipeline.table("images")
    interrupt(pipeline)
    assert "refused" in {row["state"] for row in pipeline.table("attempts")}
    assert pipeline.table("images") == images
    pipeline.simulator.set_faults([])
    pipeline.run()
    assert len(pipeline.accepted()) == 2
    for _ in range(2):
        pipeline.run(rerun=Rerun.REGENERATE, root_run_id="the-same-root")
    assert len(pipeline.accepted()) == 4
    pipeline.assert_books_agree()


def test_what_was_refused_for_itself_is_not_tried_again_by_the_same_run(pipeline: Pipeline) -> None:
    """An answer about the request is an answer, also when the run is executed once more."""
    pipeline.simulator.set_faults([{"fault": "refused_400_moderation"}])
    pipeline.write(rows(1))
    for _ in range(2):
        pipeline.run(rerun=Rerun.RETRY_FAILED, root_run_id="the-same-root")
    assert [row["state"] for row in pipeline.attempts("p0")] == ["refused"]


def test_a_wrong_key_stops_at_once_and_costs_nothing(pipelines: Callable[..., Pipeline]) -> None:
    """Thousands of requests with a wrong key are thousands of refusals; one is enough."""
    pipeline = pipelines()
    pipeline.simulator.api_key = "another-key-altogether"
    pipeline.write(rows(30))
    with pytest.raises(UserError, match="NANOBANANA_API_KEY"):
        pipeline.run()
    assert pipeline.simulator.stats()["events"].get("accepted", 0) == 0
    assert {row["status"] for row in pipeline.results().values()} == {"pending"}


def test_a_stopped_run_leaves_what_is_in_flight_to_the_next(pipelines: Callable[..., Pipeline]) -> None:
    """A stop loses nothing: the tables say `in_flight`, and the next run polls on without a second submit."""
    pipeline = pipelines(latency=60.0)
    pipeline.write(rows(5))
    stop = StopSwitch()
    pipeline.refresh()
    with pipeline.open() as workspace:

        def when_all_are_in_flight(tally: object) -> None:
            if pipeline.simulator.stats()["events"].get("accepted", 0) == 5:
                stop.throw()

        with pytest.raises(RunInterruptedError):
            generate_shard(
                workspace,
                "cat-000000",
                lambda: pipeline.provider(workspace),
                pipeline.options(),
                stop=stop,
                on_progress=when_all_are_in_flight,
            )
    assert {row["status"] for row in pipeline.results().values()} == {"in_flight"}
    pipeline.simulator.advance(600)
    pipeline.run()
    assert {row["status"] for row in pipeline.results().values()} == {"succeeded"}
    assert len(pipeline.accepted()) == 5
    pipeline.assert_books_agree()


def test_a_stop_waits_for_answers_no_longer_than_it_is_to(pipelines: Callable[..., Pipeline]) -> None:
    """Whoever stops a run ends it by force before long, and then its tables are not written."""
    pipeline = pipelines()
    pipeline.simulator.set_faults([{"prompt": "slow", "fault": "slow_answer", "seconds": 40}])
    pipeline.write([{"prompt_id": "slow", "prompt": "slow"}])
    stop = StopSwitch()
    with pipeline.open() as workspace:
        (shard,) = refresh(workspace).shards
        options = pipeline.options(patience=replace(QUICK, stop_grace_s=0.2))

        def stop_once_sent() -> None:
            pipeline.simulator.wait_for("accepted")
            stop.throw()

        with ThreadPoolExecutor(1) as thread:
            stopping = thread.submit(stop_once_sent)
            with pytest.raises(RunInterruptedError):
                generate_shard(workspace, shard, lambda: pipeline.provider(workspace), options, stop=stop)
            stopping.result()
    # An answer would have been waited for, had it come: then this was no stop in time.
    (attempt,) = pipeline.attempts("slow")
    assert attempt["state"] == "submitting"


def test_what_is_admitted_when_the_run_has_ended_is_given_back(
    pipelines: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An admission that the ledger kept waiting until after a stop is sent by nobody: it is no unknown outcome."""
    pipeline = pipelines(knobs={"requests_per_minute": 60}, latency=60.0)
    pipeline.write([{"prompt_id": f"p{n}", "prompt": f"p{n}"} for n in range(2)])
    stop = StopSwitch()
    ask, settle_down = Admissions._round, Engine._settle_down
    with pipeline.open() as workspace:
        (shard,) = refresh(workspace).shards
        path = str(workspace.ledger.database.engine.url.database)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:

            @asynccontextmanager
            async def holding_the_ledger() -> AsyncGenerator[HttpProvider]:
                """The provider; with its first answer someone takes the ledger, and gives it back after the stop."""
                async with pipeline.provider(workspace) as provider:
                    submit = provider.submit

                    async def submit_and_hold(request: Request, idempotency_key: str) -> Accepted | Refused | Unknown:
                        answer = await submit(request, idempotency_key)
                        other.execute("BEGIN IMMEDIATE")
                        return answer

                    provider.submit = submit_and_hold
                    yield provider

            async def ask_and_stop(admissions: Admissions) -> float | None:
                if other.in_transaction:
                    stop.throw()
                return await ask(admissions)

            async def settle_down_and_give_back(engine: Engine) -> None:
                await settle_down(engine)
                if other.in_transaction:
                    other.execute("ROLLBACK")

            monkeypatch.setattr(Admissions, "_round", ask_and_stop)
            monkeypatch.setattr(Engine, "_settle_down", settle_down_and_give_back)
            # So long that the second's second, before which it is not admitted, has come when the ledger is back.
            options = pipeline.options(patience=replace(QUICK, stop_grace_s=1.5))
            with pytest.raises(RunInterruptedError):
                generate_shard(workspace, shard, holding_the_ledger, options, stop=stop)
    states = {row["prompt_id"]: row["state"] for row in pipeline.table("attempts")}
    assert states == {"p0": "submitted", "p1": "refused"}
    assert pipeline.accepted() == ["p0"]


def test_a_renamed_catalogue_is_not_paid_for_again_without_a_word(pipeline: Pipeline) -> None:
    """Its items are new to the ledger, and yet their images are all there."""
    path = pipeline.write(rows(3))
    pipeline.run()
    path.rename(path.with_name("renamed.parquet"))
    with pytest.raises(UserError, match="already have images under the name cat"):
        pipeline.run()
    assert len(pipeline.accepted()) == 3
    pipeline.run(allow_duplicates=True)
    assert len(pipeline.accepted()) == 6


def test_the_cap_defers_the_rest_with_the_reason_and_a_higher_one_picks_it_up(
    pipelines: Callable[..., Pipeline],
) -> None:
    """What the cap stops is not lost, and the row says what it waits for."""
    pipeline = pipelines(knobs={"budget_usd": "0.36"})
    pipeline.write(rows(8))
    pipeline.run()
    by_status = [row["status"] for row in pipeline.results().values()]
    assert by_status.count("deferred") == 3
    assert "NANOBANANA_BUDGET_USD" in next(
        row["error_message"] for row in pipeline.results().values() if row["status"] == "deferred"
    )
    pipeline.knobs["budget_usd"] = "10"
    pipeline.run()
    assert {row["status"] for row in pipeline.results().values()} == {"succeeded"}
    pipeline.assert_books_agree()


def test_bad_rows_are_told_why_and_the_good_ones_become_images(pipelines: Callable[..., Pipeline]) -> None:
    """One bad row ends a whole run elsewhere; here 60 ways to be wrong leave 140 images and 60 reasons."""
    pipeline = pipelines(knobs={"budget_usd": 100})
    folder = pipeline.folder / "catalogue"
    folder.mkdir()
    mixed = write_mixed_catalogue(folder, "mixed")
    pipeline.run()
    assert Counter(row["status"] for row in pipeline.results().values()) == {"succeeded": 140}
    rejected = {row["row_number"]: row["rule"] for row in pipeline.table("rejected_prompts")}
    assert rejected == {number: cell.rule for number, cell in mixed.bad.items()}
    assert all(row["message"] for row in pipeline.table("rejected_prompts"))
    pipeline.assert_books_agree()


def test_tasks_behind_the_scouts_are_asked_about_once_these_have_told(pipelines: Callable[..., Pipeline]) -> None:
    """A first thousand tasks, begun before anything was learnt, were once asked about eight times each."""
    pipeline = pipelines(knobs={"max_in_flight": 100}, latency=2.5, sigma=0.05)
    pipeline.write(rows(100))
    pipeline.run()
    polls = sorted(row["polls"] for row in pipeline.table("attempts"))
    # Forty go ahead. Three times before any could have ended, each of the others had been asked about as well.
    assert len(polls) == 100
    assert statistics.median(polls[:60]) <= 2
