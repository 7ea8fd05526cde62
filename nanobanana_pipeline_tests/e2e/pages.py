"""Dagster's pages in a real browser: what a person clicks on, by the words that are on it, and pictures of it.

Pictures are kept in test-output/clicks; those of the README are made from them (`scripts/take_pictures.py`).
"""

import json
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Locator, Page, expect

PICTURES: Final = Path(__file__).parents[2] / "test-output" / "clicks"
LINEAGE: Final = "/asset-groups?expanded=" + ",".join(
    f"global@global:{group}" for group in ("catalogue", "generation", "reporting")
)
RUN: Final = re.compile("^[0-9a-f]{8}$")
_LIMIT_MS: Final = 120_000
_LOOKS_AT_MOST: Final = 12
expect.set_options(timeout=_LIMIT_MS)
# On each asset of the graph what stays true (not "3 minutes ago").
_GRAPH: Final = {"asset-node-facets": '["unsynced-tag","checks","status","kind-tag","partitions"]'}


class Pages:
    """One tab of a browser."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url

    def open(self, path: str) -> None:
        """Go to one of Dagster's pages."""
        self.page.goto(self._url + path)

    def shows(self, text: str | re.Pattern[str], *, within_s: float = 120.0) -> Locator:
        """Wait until this text can be read somewhere on the page."""
        found = self.page.get_by_text(text).filter(visible=True).first
        found.wait_for(timeout=within_s * 1000)
        return found

    def click(self, name: str) -> None:
        """Click on the first button of this name."""
        self.page.get_by_role("button", name=name).first.click()

    @property
    def dialog(self) -> Locator:
        """The dialogue in front of the page."""
        return self.page.get_by_role("dialog").first

    def materialise(self, asset: str) -> None:
        """Click on Materialize on an asset's page, and confirm that what is made together with it is made, too."""
        self.open(f"/assets/{asset}")
        self.shows("Description")
        self.click("Materialize")
        self.dialog.get_by_role("button", name="Confirm").click()

    def run_of(self, shard: str) -> Locator:
        """The link to a shard's run, in a list of runs."""
        # The list's rows are no table, and bear no names: the row is what holds both the shard and a link.
        row = self.page.get_by_text(f"partition: {shard}").first.locator(
            "xpath=ancestor::div[.//a[starts-with(@href, '/runs/')]]"
        )
        return row.last.locator("a[href^='/runs/']").filter(has_text=RUN).first

    def metadata(self, label: str) -> Locator:
        """The value beside a label."""
        return self.page.locator("tr", has=self.page.get_by_text(label, exact=True)).locator("td").nth(1)

    def has(self, label: str, value: str) -> None:
        """Wait until the value beside a label is this one."""
        expect(self.metadata(label)).to_have_text(value)

    def keep(self, name: str) -> None:
        """Keep a picture of what is seen, once it has come to rest."""
        keep(self.page, name)


@contextmanager
def pages(browser: Browser, url: str, *, width: int = 1400, height: int = 900, **stored: str) -> Generator[Pages]:
    """A tab on these pages, as a person sees them who has never been there."""
    context = browser.new_context(viewport={"width": width, "height": height}, locale="en-GB", timezone_id="UTC")
    context.set_default_timeout(_LIMIT_MS)
    items = json.dumps(list({**_GRAPH, **stored}.items()))
    context.add_init_script(f"for (const [key, value] of {items}) localStorage.setItem(key, value)")
    page = context.new_page()
    page.on("pageerror", lambda error: print(f"the page fails: {error}"))  # noqa: T201 - shown with a failed test
    tab = Pages(page, url)
    try:
        yield tab
    except BaseException:
        tab.keep("at-the-failure")
        raise
    finally:
        context.close()


def keep(page: Page, name: str) -> None:
    """Keep a picture of what a page shows, once it has come to rest; they are numbered in the order of the clicks."""
    before, after = b"", page.screenshot(animations="disabled")
    for _ in range(_LOOKS_AT_MOST):
        before, after = after, page.screenshot(animations="disabled")
        if before == after:
            break
    PICTURES.mkdir(parents=True, exist_ok=True)
    number = len(list(PICTURES.iterdir())) + 1
    (PICTURES / f"{number:02}-{name}.png").write_bytes(after)


def no_pictures() -> None:
    """Begin anew: none of an earlier test's pictures must be taken for one of this."""
    shutil.rmtree(PICTURES, ignore_errors=True)
