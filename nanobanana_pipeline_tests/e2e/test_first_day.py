"""A person's first day in Dagster's pages, click by click, in a real browser on a real `nanobanana dev` with no key."""

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from playwright.sync_api import expect

from nanobanana_pipeline_tests.e2e.command import ROOT, Place
from nanobanana_pipeline_tests.e2e.conftest import Dev
from nanobanana_pipeline_tests.e2e.dagster_dev import DagsterDev
from nanobanana_pipeline_tests.e2e.pages import LINEAGE, RUN, Pages, keep, no_pictures, pages
from nanobanana_pipeline_tests.reporting.browser import chromium_running, visit

pytestmark = [pytest.mark.slow, pytest.mark.chromium, pytest.mark.timeout(1500)]

STOPPED = "sample-000001"
SLOW_PROMPT = "Natural-history plate of a kingfisher"
MADE = "sample-000000"
PILOT = "sample-000002"
IMAGES = 60
SUCCESS = re.compile("^Success$")
NAVIGATION_FOLDED = {"dagster-nav-collapsed": "true"}

_LATEST_RUNS = "{ runsOrError(limit: 5) { ... on Runs { results { pipelineName status } } } }"


class DemosProvider:
    """The simulator that all processes of a folder share, spoken to as tests speak to one of their own."""

    def __init__(self, folder: Path) -> None:
        self._url = orjson.loads((folder / "endpoint.json").read_bytes())["base_url"]

    def tell(self, what: str, **body: Any) -> None:
        """Have it do something."""
        httpx.post(f"{self._url}/simulator/{what}", json=body, trust_env=False).raise_for_status()

    def accepted(self) -> list[str]:
        """The prompts of all submits that became a task."""
        rows = httpx.get(f"{self._url}/simulator/book", trust_env=False).json()
        return [row["prompt"] for row in rows if row["event"] == "accepted"]


def test_the_first_day(tmp_path: Path, dev: Dev, chromium: str) -> None:
    """From nothing to images that are seen and checked, with a stop on the way, and no image paid for twice."""
    no_pictures()
    here = Place(tmp_path, {"NANOBANANA_SHARD_SIZE": "16", "NANOBANANA_MAX_IN_FLIGHT": "12"})
    (tmp_path / "data" / "catalogue").mkdir(parents=True)
    terminal = dev(here)
    demo = tmp_path / "data" / "demo"
    provider = DemosProvider(demo / "simulator")
    provider.tell("faults", rules=[{"fault": "slow_task", "seconds": 3000, "contains": SLOW_PROMPT}])
    with chromium_running() as browser:
        with pages(browser, terminal.dagster.url) as tab:
            nothing_to_choose_yet(tab)
            shutil.copy2(ROOT / "data" / "catalogue" / "sample.parquet", tmp_path / "data" / "catalogue")
            prompts_become_shards(tab)
            backfill(tab, MADE, STOPPED)
            watch(tab)
            stop(tab)
            partial_results(tab)
            sent = len(provider.accepted())
            provider.tell("advance", seconds=6000)
            run_again(tab)
            assert len(provider.accepted()) == sent
            pilot_by_the_launchpad(tab)
            assert len(provider.accepted()) == sent + 2
            backfill(tab)
            made_all(tab)
            contact_sheet(tab)
            checks(tab)
        assert len(provider.accepted()) == IMAGES
        wait_for_the_report(terminal.dagster)
        with pages(browser, terminal.dagster.url, width=1560, height=760, **NAVIGATION_FOLDED) as tab:
            lineage(tab)
        for name, height in (("gallery", 860), ("costs", 1560)):
            page = demo / "site" / f"{name}.html"
            with visit(browser, page, viewport={"width": 1280, "height": height}) as seen:
                keep(seen.page, name)
    assert terminal.press_ctrl_c() == 128 + signal.SIGINT
    assert terminal.processes == []


def nothing_to_choose_yet(tab: Pages) -> None:
    """An empty workspace says what to do first; no dialogue of Dagster's own stands in the way."""
    tab.open("/")
    tab.shows("Overview")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    tab.open(LINEAGE)
    for name in ("prompt_catalogue", "prompts", "images", "cost_daily", "gallery"):
        tab.shows(name)
    tab.keep("empty")
    tab.open("/assets/images")
    tab.shows("an empty workspace has none yet")
    tab.shows("Never materialized")
    tab.keep("no-shard-yet")


def prompts_become_shards(tab: Pages) -> None:
    """The first click."""
    tab.materialise("prompts")
    tab.shows("Row count")
    tab.open("/assets/prompts?view=events")
    tab.has("mode", "simulated")
    # Not `new_shards`: `catalogue_sensor` may have been there first.
    tab.has("shards", "3")
    tab.has("images_to_make", "60")
    tab.keep("prompts")


def backfill(tab: Pages, *shards: str) -> None:
    """Choose these shards in the dialogue, or all when none is named, and launch a run for each."""
    tab.materialise("images")
    tab.shows("Partition selection")
    if shards:
        tab.dialog.get_by_text("Select a partition or create one").click()
        listed = tab.page.locator("[data-radix-popper-content-wrapper]").last
        for shard in shards:
            listed.get_by_placeholder("Filter partitions").fill(shard)
            listed.get_by_role("menuitem").filter(has_text=shard).click()
        tab.keep("partitions")
        tab.page.keyboard.press("Escape")
    else:
        tab.dialog.get_by_role("button", name="All", exact=True).click()
    tab.dialog.get_by_text(f"{len(shards) or 3} partitions").wait_for()
    tab.page.get_by_role("button", name="Launch backfill").click()
    tab.shows("Created backfill")
    tab.page.get_by_text("View", exact=True).last.click()


def watch(tab: Pages) -> None:
    """Look from the backfill to its runs, and into the one that hangs."""
    tab.shows("Partition selection")
    tab.shows(STOPPED)
    tab.keep("backfill")
    tab.page.get_by_role("tab", name="Runs").or_(tab.page.get_by_role("link", name="Runs", exact=True)).last.click()
    tab.run_of(MADE).wait_for()
    # An asset's page shows what came last: a run that ends after the stop would take the place of what the stop left.
    tab.shows(SUCCESS, within_s=180)
    tab.keep("runs")
    tab.run_of(STOPPED).click()
    # All but what hangs is done, as far as the run's log says.
    tab.shows(re.compile(r"\d+/\d+ done, [12] in flight"))
    tab.keep("run-under-way")


def stop(tab: Pages) -> None:
    """Terminate it."""
    tab.click("Terminate")
    tab.dialog.get_by_role("button", name="Terminate 1 run").click()
    tab.shows("Canceled")
    tab.shows("the next run goes on from there")
    tab.keep("run-stopped")


def partial_results(tab: Pages) -> None:
    """What was made before the stop is there, and what was sent is not lost."""
    tab.open("/assets/results?view=events")
    tab.shows(f"shard {STOPPED} was stopped; the next run goes on from there")
    tab.has("mode", "simulated")
    expect(tab.metadata("items")).to_contain_text("in_flight")
    expect(tab.metadata("items")).to_contain_text("succeeded")
    tab.keep("partial-results")


def run_again(tab: Pages) -> None:
    """Re-execute the stopped run: it takes in what was paid for."""
    tab.page.get_by_text(RUN).first.click()
    tab.shows("Canceled")
    tab.click("Re-execute all")
    # Dagster asks only once its daemon has found the backfill to be over.
    asked, again = tab.dialog.get_by_role("button", name="Confirm"), tab.page.get_by_text("Re-executions")
    asked.or_(again).first.wait_for()
    if asked.is_visible():
        asked.click()
    again.first.wait_for()
    tab.shows(SUCCESS)
    tab.keep("run-again")


def pilot_by_the_launchpad(tab: Pages) -> None:
    """A wrong value is refused before there is a run; a right one begins so many images and no more."""
    tab.open("/locations/nanobanana_pipeline/jobs/generate_images/playground")
    tab.shows("All defaults expanded")
    tab.keep("launchpad")
    tab.page.get_by_placeholder("Partition").fill(PILOT)
    tab.page.keyboard.press("Enter")
    # With it comes what the job configures for it, in place of whatever is typed until then.
    tab.shows(f"partition: {PILOT}")
    for limit in (-1, 2):
        tab.page.locator(".CodeMirror").first.click()
        tab.page.keyboard.press("Control+a")
        tab.page.keyboard.insert_text(f"ops:\n  generation:\n    config:\n      limit: {limit}\n")
        tab.page.get_by_role("button", name="Launch Run").click()
        if limit < 0:
            tab.shows("greater than or equal to 0")
            tab.keep("wrong-value-refused")
            tab.page.keyboard.press("Escape")
    tab.shows(SUCCESS)
    tab.keep("pilot")


def made_all(tab: Pages) -> None:
    """The backfill of what the pilot left is done."""
    tab.shows("100% completed", within_s=180)


def contact_sheet(tab: Pages) -> None:
    """The images themselves."""
    tab.open(f"/assets/images?view=partitions&partition={MADE}")
    tab.has("mode", "simulated")
    tab.metadata("contact_sheet").get_by_text("[Show Markdown]").click()
    sheet = tab.dialog.locator("img").first
    sheet.wait_for()
    assert sheet.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    tab.keep("contact-sheet")


def checks(tab: Pages) -> None:
    """All green."""
    for asset, count in (("images", 1), ("attempts", 1), ("results", 3)):
        tab.open(f"/assets/{asset}?view=checks")
        tab.shows(f"Checks ({count})")
        expect(tab.page.get_by_text("Succeeded", exact=True)).to_have_count(count)
        tab.shows("Passed")
        tab.keep(f"checks-of-{asset}")


def wait_for_the_report(dagster: DagsterDev) -> None:
    """`report_sensor` brings the pages up to date by itself."""

    def reported() -> bool:
        runs = dagster.query(_LATEST_RUNS)["runsOrError"]["results"]
        order = [run["pipelineName"] for run in runs if run["status"] == "SUCCESS"]
        return order[:1] == ["report_costs"]

    dagster.wait_for("the report after generation", reported, 240)


def lineage(tab: Pages) -> None:
    """From left to right, and all of it is there."""
    tab.open(LINEAGE)
    for name in ("prompt_catalogue", "prompts", "images", "cost_daily", "gallery"):
        tab.shows(name)
    tab.shows("reconciliation")
    tab.keep("dagster")
