"""docs/operations.md: whoever has one of these troubles follows its recipe as it stands there, and is out of it."""

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.e2e import recipes
from nanobanana_pipeline_tests.e2e.command import LIMIT_S, ROOT, Place, finish, submits
from nanobanana_pipeline_tests.e2e.recipes import Step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FOLLOWED: dict[str, str] = {
    "What happened?": "reporting/test_explain.py",
    "Being told": "reporting/test_alerts.py",
    "A second pipeline beside the first": "e2e/test_dev.py",
}
"""Recipes that another test follows."""

Start = Callable[..., SimulatorProcess]


class Trouble:
    """A place with images made, and a provider that keeps its own book."""

    def __init__(self, folder: Path, start: Start, home: Path) -> None:
        self.start = start
        self.provider = start(latency=0.05)
        self.here = Place.with_provider(folder, self.provider)
        self.here.furnish(home)

    def catalogue(self, count: int = 4) -> None:
        """So many prompts."""
        self.here.catalogue({f"p{n}": f"a drawing of the number {n}" for n in range(count)})

    def make(self, *options: str, code: int = 0, **environment: str) -> None:
        """Run once, with this exit code."""
        ended = self.here.run("run", *options, **environment)
        assert ended.code == code, ended.err

    def follow(self, title: str, values: Mapping[str, str] | None = None) -> list[Step]:
        """Follow the recipe of this heading."""
        return recipes.follow(recipes.commands(title), self.here.folder, self.here._environment({}), values or {})

    def wait_for_tasks(self, count: int) -> None:
        """Wait until the ledger knows so many tasks: who is killed before has requests of unknown outcome."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect(self.here.output / "ledger.sqlite")) as db:
                if db.execute("SELECT count(*) FROM attempts WHERE task_id IS NOT NULL").fetchone() == (count,):
                    return
            time.sleep(0.05)
        raise AssertionError(f"the ledger doesn't know of {count} tasks after {LIMIT_S} s")

    def statuses(self) -> dict[str, int]:
        """Items by status."""
        found = self.here.query("SELECT status, count(*) AS n FROM results WHERE active GROUP BY 1")
        return {row["status"]: row["n"] for row in found}


def codes(steps: list[Step]) -> list[int]:
    """How each command ended."""
    return [step.code for step in steps]


@pytest.fixture
def trouble(tmp_path: Path, simulator: Start, home: Path) -> Trouble:
    """A place to get into trouble."""
    return Trouble(tmp_path, simulator, home)


def test_every_recipe_with_commands_is_followed_by_a_test() -> None:
    """A recipe that nobody tries is a guess, and is read at the worst moment."""
    named = {value for name, value in globals().items() if name.isupper() and isinstance(value, str)}
    with_commands = {title for title in recipes.recipes() if "nanobanana" in recipes.commands(title)}
    assert with_commands <= named | FOLLOWED.keys(), with_commands - named - FOLLOWED.keys()
    tests = ROOT / "nanobanana_pipeline_tests"
    assert all((tests / file).exists() for file in FOLLOWED.values())


CRASHED = "The machine crashed, or a run was killed"
STUCK = "A shard is stuck"


@pytest.mark.parametrize("title", [CRASHED, STUCK])
def test_a_killed_or_stopped_run_goes_on(trouble: Trouble, title: str) -> None:
    """What the provider had taken is asked about again, and paid for once."""
    trouble.catalogue()
    trouble.provider.set_faults([{"fault": "slow_task", "seconds": 3000}])
    process = trouble.here.start("run")
    trouble.wait_for_tasks(4)
    if title == CRASHED:
        process.kill()
        process.communicate()
    else:
        assert finish(process, number=signal.SIGTERM).code == 128 + signal.SIGTERM
    trouble.provider.advance(6000)
    status, run = trouble.follow(title)
    assert ("has died" in status.out) == (title == CRASHED)
    assert run.code == 0, run.err
    assert trouble.statuses() == {"succeeded": 4}
    assert len(submits(trouble.provider)) == 4


UNKNOWN = "Outcomes that nobody knows"


def test_lost_answers_are_decided_on(trouble: Trouble) -> None:
    """One is sent again, the other given up; both on a person's word alone."""
    trouble.catalogue()
    trouble.provider.set_faults([{"fault": "answer_lost", "contains": f"number {n}", "times": 1} for n in (1, 2)])
    trouble.make(code=3)
    listed = trouble.here.run("unknown", "list", "--json").json["unknown"]
    again, given_up = (attempt["attempt_id"] for attempt in listed)
    title, text = UNKNOWN, recipes.commands(UNKNOWN)
    assert text.count("0193c2ab") == 2
    text = text.replace("0193c2ab", again, 1).replace("0193c2ab", given_up, 1)
    steps = recipes.follow(text, trouble.here.folder, trouble.here._environment({}), {})
    assert codes(steps)[:3] == [0, 0, 0], title
    assert len(submits(trouble.provider)) == 5
    assert trouble.statuses()["succeeded"] == 3


FAILED = "Items failed"


def test_failed_items_are_looked_at_and_tried_again(trouble: Trouble) -> None:
    """The reason first; what only failed for the moment then succeeds."""
    trouble.catalogue()
    trouble.provider.set_faults([{"fault": "failed", "contains": "number 1"}])
    trouble.make(code=3)
    trouble.provider.set_faults([])
    query, run = trouble.follow(FAILED)
    assert "provider_failure" in query.out
    assert run.code == 0, run.err
    assert trouble.statuses() == {"succeeded": 4}


WRONG_KEY = "Wrong key, or an empty account"


def test_the_right_key_is_set(trouble: Trouble) -> None:
    """Nothing was charged meanwhile, and nothing is lost."""
    trouble.catalogue()
    trouble.make(code=1, NANOBANANA_API_KEY="a-wrong-key")
    assert submits(trouble.provider) == []
    assert codes(trouble.follow(WRONG_KEY, {"…": trouble.provider.api_key})) == [0]
    assert trouble.statuses() == {"succeeded": 4}


CAP = "The cap is reached"


def test_a_higher_cap_lets_the_rest_go_on(trouble: Trouble) -> None:
    """What didn't fit was put off, not dropped."""
    trouble.catalogue(6)
    trouble.here.environment["NANOBANANA_BUDGET_USD"] = "0.25"
    trouble.make(code=3)
    made = len(submits(trouble.provider))
    assert 0 < made < 6
    status, run = trouble.follow(CAP)
    assert "deferred" in status.out
    assert run.code == 0, run.err
    assert len(submits(trouble.provider)) == 6


DOWN = "The provider is down"


def test_an_outage_is_waited_for(trouble: Trouble) -> None:
    """Nothing happens while nobody answers, and all of it afterwards."""
    trouble.catalogue()
    trouble.provider.stop()
    trouble.make(code=1)
    trouble.provider.start()
    assert codes(trouble.follow(DOWN)) == [0]
    assert trouble.statuses() == {"succeeded": 4}


PRICES = "The prices are wrong"


def test_the_books_get_the_right_prices(trouble: Trouble) -> None:
    """What was booked by a wrong list is booked anew; the sums of tables and ledger follow."""
    trouble.catalogue()
    trouble.make()
    (trouble.here.folder / "prices.toml").write_text(recipes.block(PRICES, "toml"))
    before = trouble.here.query("SELECT sum(cost_usd) AS usd FROM results")
    repriced, query = trouble.follow(PRICES)
    assert (repriced.code, query.code) == (0, 0), repriced.err
    assert "contract-2026" in query.out
    after = trouble.here.query("SELECT sum(cost_usd) AS usd FROM results")
    assert 0 < Decimal(str(after[0]["usd"])) < Decimal(str(before[0]["usd"]))


RETIRED = "The model is retired"


def test_the_next_model_has_a_pipeline_of_its_own(trouble: Trouble, tmp_path: Path) -> None:
    """The images of the old model stay as they are, and are not paid for again by the new one's run."""
    trouble.catalogue(2)
    trouble.make()
    trouble.here.catalogue({"new": "a drawing for the next model"}, "next")
    (tmp_path / "data" / "next").mkdir()
    (tmp_path / "data" / "catalogue" / "next.parquet").rename(tmp_path / "data" / "next" / "next.parquet")
    spec = tmp_path / "spec.toml"
    ours = ROOT / "nanobanana_pipeline" / "model_specs" / "nano_banana_2.toml"
    spec.write_text(ours.read_text().replace('name = "nano_banana_2"', 'name = "nano_banana_3"', 1))
    successor = trouble.start(latency=0.05, model=str(spec))
    trouble.here.environment["NANOBANANA_BASE_URL"] = successor.base_url
    assert codes(trouble.follow(RETIRED)) == [0, 0]
    assert submits(successor) == ["a drawing for the next model"]
    assert trouble.statuses() == {"succeeded": 2}
    trouble.here.environment["NANOBANANA_PIPELINE"] = "next"
    assert trouble.here.query("SELECT DISTINCT model FROM results") == [{"model": "nano_banana_3"}]


CORRUPTED = "A table is corrupted, or was deleted"


def test_torn_tables_are_written_anew(trouble: Trouble) -> None:
    """From the ledger, at no cost, as they were."""
    trouble.catalogue()
    trouble.make()
    before = trouble.here.query("FROM results ORDER BY item_id")
    tables = trouble.here.output / "tables"
    shutil.rmtree(tables / "results")
    for file in (tables / "attempts").rglob("*.parquet"):
        os.truncate(file, file.stat().st_size // 2)
    assert codes(trouble.follow(CORRUPTED)) == [0, 0, 0]
    assert trouble.here.query("FROM results ORDER BY item_id") == before
    assert trouble.here.query("SELECT count(*) AS n FROM attempts") == [{"n": 4}]
    assert len(submits(trouble.provider)) == 4


MISSING = "An image file is missing"


def test_a_missing_image_is_fetched_and_one_that_is_gone_made_anew(trouble: Trouble) -> None:
    """What the provider still has costs nothing; the other is paid for on a person's word."""
    trouble.catalogue()
    trouble.make()
    files = {row["prompt_id"]: row["path"] for row in trouble.here.query("SELECT prompt_id, path FROM images")}
    (trouble.here.output / files["p0"]).unlink()
    steps = trouble.follow(MISSING, {"ITEM": "p1"})
    assert codes(steps) == [0, 0], steps
    assert (trouble.here.output / files["p0"]).is_file()
    assert len(submits(trouble.provider)) == 5
    assert trouble.statuses() == {"succeeded": 4}


MOVED = "The output folder was moved"


def test_a_moved_output_is_found_again(trouble: Trouble) -> None:
    """With all its images, which are not made again."""
    trouble.catalogue()
    trouble.make()
    status, run = trouble.follow(MOVED)
    assert (status.code, run.code) == (0, 0), run.err
    assert not trouble.here.output.exists()
    assert len(submits(trouble.provider)) == 4


BACKUP = "Backup and restore"


def test_an_older_ledger_is_brought_up_to_what_the_tables_show(trouble: Trouble) -> None:
    """What was made after the backup is not paid for again."""
    trouble.catalogue()
    trouble.make()
    backup, restore = (text for _, text in recipes.recipes()[BACKUP])
    environment = trouble.here._environment({})
    assert recipes.follow(backup, trouble.here.folder, environment, {}) == []
    assert len(list((trouble.here.folder / "backup" / "images").rglob("*.*"))) == 4
    trouble.catalogue(6)
    trouble.make()
    refused, adopted, run = recipes.follow(restore, trouble.here.folder, environment, {})
    assert refused.code == 1
    assert "older than the tables" in refused.err
    assert (adopted.code, run.code) == (0, 0), run.err
    assert len(submits(trouble.provider)) == 6
    assert trouble.statuses() == {"succeeded": 6}


UPGRADED = "Another version of nanobanana_pipeline"


def test_a_ledger_of_an_earlier_version_is_brought_up_to_date(trouble: Trouble) -> None:
    """Whoever installs a new version looks, runs, and has everything as before."""
    earlier = ROOT / "nanobanana_pipeline_tests" / "storage" / "data" / "version_0_1"
    with closing(sqlite3.connect(trouble.here.output / "ledger.sqlite")) as ledger:
        ledger.executescript((earlier / "ledger.sql").read_text())
    shutil.copytree(earlier / "tables", trouble.here.output / "tables")
    before = trouble.here.query("SELECT count(*) AS n FROM results")
    status, _ = trouble.follow(UPGRADED)
    assert status.code == 0, status.err
    assert trouble.here.query("SELECT count(*) AS n FROM results") == before
