"""`nanobanana run` as a person runs it: the real command, against a provider that keeps its own book."""

import os
import signal
import threading
from collections.abc import Callable
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, RunsFilter

from nanobanana_pipeline.ledger.ledger import Ledger, Stamp
from nanobanana_pipeline.orchestration.shard_choice import End
from nanobanana_pipeline.orchestration.shard_facts import end_of
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline.storage.tables import Tables
from nanobanana_pipeline_tests.e2e.command import LIMIT_S, Place, billed, finish, submits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SimulatorProcess]


@pytest.fixture
def place(tmp_path: Path, simulator: Start, home: Path) -> tuple[Place, SimulatorProcess]:
    """A place, and the quick provider that it works with."""
    provider = simulator(latency=0.05)
    here = Place.with_provider(tmp_path, provider)
    here.furnish(home)
    return here, provider


def prompts(count: int, start: int = 0) -> dict[str, str]:
    """Prompts by their ids."""
    return {f"p{i:03}": f"a drawing of the number {i}" for i in range(start, start + count)}


def test_a_catalogue_becomes_images_once(tmp_path: Path, simulator: Start) -> None:
    """The whole promise in little: every image, exact books; nothing paid again; edits cost what they are."""
    provider = simulator(latency=0.05)
    here = Place.with_provider(tmp_path, provider)
    here.catalogue(prompts(25))
    first = here.run("run", "--json")
    assert first.code == 0, first.err
    said = first.json
    assert said["mode"] == "simulated"
    assert said["items"] == {
        "pending": 0,
        "in_flight": 0,
        "unknown": 0,
        "succeeded": 25,
        "failed": 0,
        "deferred": 0,
    }
    assert (said["submitted"], said["images"]) == (25, 25)
    assert Decimal(said["cost_usd"]) == billed(provider)
    assert len(said["cost_usd"].partition(".")[2]) == 6
    assert said["at_risk_usd"] == "0.000000"
    assert said["shards"] == ["c-000000", "c-000001"]
    assert len(said["run_ids"]) == 4
    assert set(said["paths"]) == {"images", "tables", "pages", "log"}
    assert all(Path(path).exists() for path in said["paths"].values())
    (sums,) = here.query("SELECT count(*) AS n, sum(cost_usd) AS usd, sum(total_tokens) AS tokens FROM results")
    assert (sums["n"], Decimal(str(sums["usd"]))) == (25, billed(provider))
    assert sums["tokens"] == said["total_tokens"]
    rows = here.query("SELECT path, shard, prompt_id FROM images")
    assert all((here.output / row["path"]).is_file() for row in rows)
    (daily,) = here.query("SELECT sum(images) AS images FROM cost_daily")
    assert daily["images"] == 25

    again = here.run("run", "--json")
    assert again.code == 0
    assert (again.json["submitted"], again.json["cost_usd"], again.json["shards"]) == (0, "0.000000", [])
    assert len(submits(provider)) == 25

    # Once more: it has been seen that nothing is left, so Dagster is not even asked.
    quick = here.run("run", "--json")
    assert (quick.code, len(quick.json["run_ids"]), len(again.json["run_ids"])) == (0, 0, 2)
    assert quick.json["total"] == again.json["total"]

    changed = {**prompts(35), "p003": "something else"}
    del changed["p007"]
    here.catalogue(changed)
    third = here.run("run", "--json")
    assert third.code == 0
    assert third.json["submitted"] == 11
    assert sorted(submits(provider)[25:]) == sorted(["something else", *prompts(10, start=25).values()])
    now = {row["prompt_id"]: row for row in here.query("SELECT prompt_id, shard, active FROM results")}
    assert all(now[row["prompt_id"]]["shard"] == row["shard"] for row in rows)
    assert [prompt_id for prompt_id, row in now.items() if not row["active"]] == ["p007"]


def test_a_costly_run_waits_for_an_approval(place: tuple[Place, SimulatorProcess]) -> None:
    """Nothing new is sent before a person has said so, in the words that the refusal tells."""
    here, provider = place
    here.catalogue(prompts(25))
    here.environment["NANOBANANA_APPROVE_ABOVE_USD"] = "1"
    refused = here.run("run")
    assert refused.code == 1
    assert submits(provider) == []
    asked = refused.only_line.partition("nanobanana approve ")[2].partition("`")[0]
    assert here.run("run", "--max-cost", "0.2").code == 3
    assert 0 < len(submits(provider)) < 4
    assert here.run("approve", asked).code == 0
    assert here.run("run").code == 0
    assert len(submits(provider)) == 25


def test_a_run_that_makes_nothing_writes_the_rows_that_a_killed_one_did_not(
    place: tuple[Place, SimulatorProcess],
) -> None:
    """Rows of a shard with work left are written when it has ended; where none of it may begin, all the same."""
    here, provider = place
    here.catalogue(prompts(5))
    assert here.run("run", "--limit", "3").code == 0
    tables = Tables(here.output)
    tables.replace("results", tables.read("results").slice(0, 1), None, expected_version=tables.version("results"))
    assert here.query("SELECT count(*) AS n FROM results") == [{"n": 1}]
    refused = here.run("run", NANOBANANA_APPROVE_ABOVE_USD="0.01")
    assert refused.code == 1
    assert len(submits(provider)) == 3
    assert here.query("SELECT status, count(*) AS n FROM results GROUP BY 1 ORDER BY 1") == [
        {"status": "pending", "n": 2},
        {"status": "succeeded", "n": 3},
    ]


def test_a_limit_counts_items_over_all_shards(place: tuple[Place, SimulatorProcess]) -> None:
    """A pilot of 18 must never become 18 a shard."""
    here, provider = place
    here.catalogue(prompts(25))
    pilot = here.run("run", "--limit", "18", "--json")
    assert pilot.code == 0, pilot.err
    assert pilot.json["submitted"] == len(submits(provider)) == 18
    assert pilot.json["items"]["pending"] == 7
    rest = here.run("run", "--json")
    assert rest.json["submitted"] == 7
    assert len(set(submits(provider))) == 25


def test_only_ctrl_c_is_a_persons_word_on_the_shards(place: tuple[Place, SimulatorProcess]) -> None:
    """`generation_sensor` leaves alone what a person stopped: neither a shutdown nor an empty account looks like it."""
    here, provider = place
    provider.set_faults([{"fault": "slow_task", "seconds": 3000}])
    for number, sent, end in ((signal.SIGTERM, 30, End.ABANDONED), (signal.SIGINT, 45, End.STOPPED)):
        here.catalogue(prompts(sent))
        process = here.start("run")
        provider.wait_for("accepted", sent)
        assert finish(process, number=number).code == 128 + number
        assert latest_ends(here, 2) == {end}
    here.catalogue(prompts(60))
    provider.set_faults([{"fault": "balance_403", "prompt": "a drawing of the number 59"}])
    assert here.run("run").code == 1
    assert latest_ends(here, 4) == {End.BROKEN, End.ABANDONED}


def latest_ends(here: Place, count: int) -> set[End]:
    """How the last runs of generation ended."""
    with DagsterInstance.from_config(str(here.output / ".dagster")) as instance:
        return {end_of(run) for run in instance.get_runs(RunsFilter(job_name="generate_images"), limit=count)}


# The ledger goes away while the run plans, and it is told to stop before that is back.
LOST = """
import os, signal, sys
from sqlalchemy import make_url
from nanobanana_pipeline.cli import program
from nanobanana_pipeline.orchestration import headless
from nanobanana_pipeline_tests.servers.proxy import Proxy

headless._WHOLE_STOP_LIMIT_S = 1.0
plan, url = headless.plan, make_url(sys.argv.pop())

def plan_for_nothing(*args):
    planned = plan(*args)
    wire.cut()
    signal.raise_signal(signal.SIGINT)
    return planned

headless.plan = plan_for_nothing
with Proxy(url.port or 5432) as wire:
    through_wire = url.set(host="127.0.0.1", port=wire.port)
    os.environ["NANOBANANA_LEDGER_URL"] = through_wire.render_as_string(hide_password=False)
    program()
"""


@pytest.mark.postgres
def test_a_stop_comes_to_an_end_while_the_ledger_is_waited_for(
    place: tuple[Place, SimulatorProcess], postgres_url: str
) -> None:
    """Ctrl-C did nothing for as long as ten minutes: the main thread waited, and nobody followed the stop."""
    here, provider = place
    here.catalogue(prompts(2))
    ended = finish(here.start("run", postgres_url, program=("-c", LOST)))
    assert ended.code == 128 + signal.SIGINT
    assert "bring it back" in ended.err
    assert submits(provider) == []


def test_a_wrong_key_ends_it_in_one_line_and_is_kept_nowhere(place: tuple[Place, SimulatorProcess]) -> None:
    """Nothing is charged, nobody is flooded, and the secret is in no file, log, table or Dagster record."""
    here, provider = place
    here.catalogue(prompts(25))
    key = "sk-wrong-0123456789abcdef"
    ended = here.run("run", NANOBANANA_API_KEY=key)
    assert ended.code == 1
    assert "NANOBANANA_API_KEY" in ended.only_line
    assert submits(provider) == []
    assert key not in ended.out + ended.err
    assert [file for file in here.folder.rglob("*") if file.is_file() and key.encode() in file.read_bytes()] == []
    assert {row["status"] for row in here.query("SELECT status FROM results")} == {"pending"}


def test_a_provider_out_of_reach_is_one_line(place: tuple[Place, SimulatorProcess]) -> None:
    """The commonest trouble of a first day says where it looked and what to check."""
    here, _ = place
    here.catalogue(prompts(1))
    ended = here.run("run", NANOBANANA_BASE_URL="http://127.0.0.1:9")
    assert ended.code == 1
    assert "http://127.0.0.1:9" in ended.only_line
    assert len(ended.err.splitlines()) == 1


def test_an_unknown_catalogue_is_one_line(place: tuple[Place, SimulatorProcess]) -> None:
    """A mistyped name must not look like a run with nothing to do."""
    here, _ = place
    here.catalogue(prompts(1))
    ended = here.run("run", "--catalogue", "spring")
    assert ended.code == 1
    assert "spring" in ended.only_line


def test_a_stop_leaves_nothing_unknown_and_nothing_to_pay_twice(tmp_path: Path, simulator: Start, home: Path) -> None:
    """Stopped in the middle it ends soon, with true tables; the next run takes in what is paid and submits the rest."""
    provider = simulator(latency=6.0, sigma=0.0)
    here = Place.with_provider(tmp_path, provider, MAX_IN_FLIGHT="9")
    here.furnish(home)
    here.catalogue(prompts(25))
    for number, accepted in ((signal.SIGTERM, 9), (signal.SIGINT, 18)):
        process = here.start("run", "--json")
        provider.wait_for("accepted", accepted)
        stopped = finish(process, number=number)
        assert stopped.code == 128 + number
        assert stopped.took_s < 15
        assert stopped.json["stopped"]
        items = stopped.json["items"]
        assert items["in_flight"] > 0
        assert (items["unknown"], items["failed"]) == (0, 0)
    counts = here.query("SELECT status, count(*) AS n FROM results GROUP BY 1")
    assert {row["status"]: row["n"] for row in counts} == {name: n for name, n in items.items() if n}
    rest = here.run("run", "--json", NANOBANANA_MAX_IN_FLIGHT="64")
    assert rest.code == 0, rest.err
    assert rest.json["items"]["succeeded"] == 25
    assert sorted(submits(provider)) == sorted(prompts(25).values())


def test_the_slow_tail_of_a_shard_does_not_keep_the_next_from_beginning(
    tmp_path: Path, simulator: Start, home: Path
) -> None:
    """Each of these shards is all tail once it has begun: the provider would be idle while they are waited for."""
    provider = simulator(latency=600.0, sigma=0.0)
    here = Place.with_provider(tmp_path, provider, SHARD_SIZE="1")
    here.furnish(home)
    here.catalogue(prompts(6))
    process = here.start("run", "--json")
    provider.wait_for("accepted", 6)
    assert finish(process, number=signal.SIGTERM).json["items"]["in_flight"] == 6


def test_a_closed_terminal_is_a_stop_like_any_other(tmp_path: Path, simulator: Start, home: Path) -> None:
    """A laptop's lid, a lost connection: a progress bar that can't be drawn any more must not cost a run its end."""
    provider = simulator(latency=600.0, sigma=0.0)
    here = Place.with_provider(tmp_path, provider)
    here.furnish(home)
    here.catalogue(prompts(5))
    process, terminal = here.start_on_a_terminal("run")
    provider.wait_for("accepted", 5)
    shown = os.read(terminal, 65536)
    assert b"5 items to do" in shown
    os.close(terminal)
    assert process.wait(timeout=LIMIT_S) == 128 + signal.SIGHUP
    assert here.query("SELECT status, count(*) AS n FROM results GROUP BY 1") == [{"status": "in_flight", "n": 5}]


def test_what_could_not_be_done_is_exit_3_and_a_person_decides(place: tuple[Place, SimulatorProcess]) -> None:
    """A script must notice; a lost answer is never sent again by itself, but on a person's word."""
    here, provider = place
    here.catalogue({**prompts(4), "lost": "the lost one", "bad": "the bad one"})
    provider.set_faults(
        [
            {"contains": "lost", "fault": "answer_lost", "times": 1},
            {"contains": "bad", "fault": "refused_400_moderation"},
        ]
    )
    ended = here.run("run", "--json")
    assert ended.code == 3, ended.err
    assert {name: n for name, n in ended.json["items"].items() if n} == {"succeeded": 4, "unknown": 1, "failed": 1}
    assert ended.json["failures"] == {"content_policy": 1}
    held: list[Any] = here.run("unknown", "list", "--json").json["unknown"]
    assert [attempt["prompt_id"] for attempt in held] == ["lost"]
    assert here.run("run", "--json").code == 3
    assert submits(provider).count("the lost one") == 1

    decided = here.run("unknown", "resubmit", held[0]["attempt_id"][:20])
    assert decided.code == 0, decided.err
    after = here.run("run", "--json")
    assert {name: n for name, n in after.json["items"].items() if n} == {"succeeded": 5, "failed": 1}
    assert submits(provider).count("the lost one") == 2
    assert Decimal(after.json["total"]["cost_usd"]) + Decimal(after.json["at_risk_usd"]) >= billed(provider)
    assert here.run("status", "--json").json["items"]["succeeded"] == 5


def test_a_limit_passes_over_items_that_had_all_their_attempts(place: tuple[Place, SimulatorProcess]) -> None:
    """The settings send them no more, and first in order they took every turn: such runs did nothing for ever."""
    here, provider = place
    here.catalogue({"lost": "the lost one", "good": "the good one"})
    provider.set_faults([{"contains": "lost", "fault": "answer_lost", "times": 1}])
    knobs = {"ON_UNKNOWN": "resubmit", "MAX_ATTEMPTS": "1", "SHARD_SIZE": "1"}
    here.environment |= {f"NANOBANANA_{name}": value for name, value in knobs.items()}
    assert here.run("run", "--limit", "1").code == 3
    assert submits(provider) == ["the lost one"]

    here.run("run", "--limit", "1")
    assert submits(provider) == ["the lost one", "the good one"]
    # A person's word is about any of them.
    assert here.run("run", "--limit", "1", "--resubmit-unknown").code == 0
    assert submits(provider) == ["the lost one", "the good one", "the lost one"]


def test_rejected_rows_are_a_warning(place: tuple[Place, SimulatorProcess]) -> None:
    """Bad rows are the catalogue's business: the good ones are made, and a script is not stopped by the others."""
    here, _ = place
    here.catalogue(prompts(3), aspect_ratio=["1:1", "7:5", None])
    ended = here.run("run")
    assert ended.code == 0, ended.err
    assert "1 row of the catalogue was rejected" in ended.err
    assert [row["rule"] for row in here.query("SELECT rule FROM rejected_prompts")] == ["aspect_ratio_unknown"]


def test_simulated_work_and_real_work_never_share_an_output(place: tuple[Place, SimulatorProcess]) -> None:
    """Else a person who tried it out first would believe that their images were made."""
    here, _ = place
    here.catalogue(prompts(2))
    with Ledger(f"sqlite:///{here.output / 'ledger.sqlite'}") as ledger:
        ledger.claim(Stamp("simulated", here.environment["NANOBANANA_BASE_URL"]))
    # Not the simulator, by its answers' headers: for all that is known, the real provider.
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        refused = here.run("run", NANOBANANA_BASE_URL=f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert refused.code == 1
    assert "NANOBANANA_OUTPUT" in refused.only_line
