"""The pages of an output that is in a private bucket: one link opens them all, and gives nothing else away."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.reporting.pages import Site, write_site
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.generation.pipelines import Pipeline
from nanobanana_pipeline_tests.reporting.browser import Browser, Visit, chromium_running, visit
from nanobanana_pipeline_tests.servers.object_store import SECRET, ObjectStoreProcess


@pytest.fixture
def remote(tmp_path: Path, simulator: Callable[..., SimulatorProcess], bucket: str) -> Pipeline:
    """An output in a bucket with three images."""
    made = Pipeline(tmp_path, simulator(latency=0.01), ledger_url=f"sqlite:///{tmp_path}/ledger.sqlite", bucket=bucket)
    made.write([{"prompt": f"a fox {n}", "prompt_id": f"p{n}"} for n in range(3)])
    made.run()
    return made


@pytest.fixture
def browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium_running() as running:
        yield running


def pages(pipeline: Pipeline) -> Site:
    """Its pages, written now."""
    with pipeline.open() as workspace:
        return write_site(workspace)


def texts(uri: str) -> dict[str, str]:
    """What stands in every page, script and style below `uri`."""
    store, base = open_uri(uri)
    return {path: store.cat_file(path).decode() for path in store.find(base) if path.endswith((".html", ".js", ".css"))}


def widths(seen: Visit, selector: str) -> list[int]:
    """How wide the pictures are that have been loaded; 0 for one that has not."""
    return seen.page.eval_on_selector_all(selector, "all => all.map(image => image.naturalWidth)")


@pytest.mark.chromium
@pytest.mark.slow
def test_one_link_opens_every_page_and_picture(
    remote: Pipeline, browser: Browser, object_store: ObjectStoreProcess
) -> None:
    """Whoever is sent the link has a browser and no key; every part that the pages ask for must come by a link too."""
    site = pages(remote)

    with visit(browser, site.link) as seen:
        seen.page.wait_for_selector("html[data-loaded]")
        seen.page.wait_for_load_state("networkidle")
        assert widths(seen, ".wall img") == [320] * 3
        assert "Links until" in seen.page.inner_text("header")
        seen.page.click(".wall a")
        seen.page.wait_for_selector("dialog .stage img[alt^='a fox']")
        seen.page.wait_for_load_state("networkidle")
        assert widths(seen, "dialog .stage img") == [1024]
        seen.page.wait_for_selector("dialog h3:text('Attempts')")
        for link in seen.page.eval_on_selector_all("dialog .facts a", "all => all.map(a => a.href)"):
            assert seen.page.request.get(link).ok, link
        seen.page.keyboard.press("Escape")
        seen.page.click("nav a:text('Costs')")
        seen.page.wait_for_selector("#report h2")
        # The index leads on before its icon is there.
        assert [complaint for complaint in seen.complaints if "icon.svg" not in complaint] == []
        assert {f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in seen.requests} == {object_store.url}
        assert all("X-Amz-Signature" in url for url in seen.requests)


def test_the_links_end_and_hold_no_secret(remote: Pipeline, bucket: str) -> None:
    """A page is passed on, and kept for years: what is in it must neither work for ever nor open anything else."""
    site = pages(remote)

    assert parse_qs(urlsplit(site.link).query)["X-Amz-Expires"] == [str(7 * 24 * 3600)]
    assert site.gallery == f"{bucket}/output/site/gallery.html"
    written = texts(f"{bucket}/output/site")
    assert not [path for path, text in written.items() if SECRET in text]
    assert sum("X-Amz-Signature" in text for text in written.values()) >= 5


def test_a_bucket_behind_a_web_server_has_plain_paths(remote: Pipeline, bucket: str) -> None:
    """Who has a login of their own in front of the bucket wants pages that never end."""
    remote.knobs["link_hours"] = 0

    site = pages(remote)

    assert site.link == site.index
    assert not [path for path, text in texts(f"{bucket}/output/site").items() if "X-Amz" in text]


def test_links_longer_than_a_store_grants_are_refused_at_the_start() -> None:
    """S3 takes no more than seven days, and would say so only when somebody opens the page."""
    with pytest.raises(UserError, match="NANOBANANA_LINK_HOURS"):
        load_settings(link_hours=169)
