"""Takes the pictures in docs/pictures anew: runs the demo, opens its pages and Dagster's in Chromium, photographs them.

    python scripts/take_pictures.py                everything anew, from a demo in a temporary folder
    python scripts/take_pictures.py --keep FOLDER  the same in FOLDER, which stays (and a demo there is used again)

Needs Chromium on the PATH and the project's `dev` extra. What the pictures show is the real thing: `nanobanana demo`
makes the images, and `nanobanana dev` serves Dagster's pages. Only the layout is chosen here: what is folded open, and
how large.
"""
# ruff: noqa: INP001, T201 (a folder of programs, no package; it speaks to whoever runs it)

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

from PIL import Image
from playwright.sync_api import Browser, Error, Page, sync_playwright

PROJECT: Final = Path(__file__).resolve().parents[1]
SAMPLE: Final = PROJECT / "data" / "catalogue" / "sample.parquet"
PICTURES: Final = PROJECT / "docs" / "pictures"
MOST_BYTES: Final = 400_000
SHARD: Final = "sample-000000"

_ARGUMENTS: Final = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_T = TypeVar("_T")

_START_LIMIT_S: Final = 300.0
_END_LIMIT_S: Final = 90.0
_LIMIT_MS: Final = 90_000
_SETTLE_MS: Final = 2_500
"""Dagster's graph glides to its place; nothing on the page says when it has arrived."""

_GROUPS: Final = ("catalogue", "generation", "reporting")
_LINEAGE: Final = "/asset-groups?expanded=" + ",".join(f"global@global:{group}" for group in _GROUPS)
_IN_ORDER: Final = (
    (("prompt_catalogue",), None),
    (("prompts", "rejected_prompts"), None),
    (("images", "results", "attempts"), SHARD),
)
# The graph with room for itself; on each asset what stays true (not "3 minutes ago").
_LAYOUT: Final = {
    "dagster-nav-collapsed": "true",
    "asset-node-facets": '["unsynced-tag","checks","status","kind-tag","partitions"]',
}
_LOCATIONS: Final = (
    "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"
)
_LAUNCH: Final = """
mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
} }"""
_REPORTS: Final = """
query($after: Float!) { runsOrError(filter: {pipelineName: "report_costs", createdAfter: $after}) {
  ... on Runs { results { status } }
} }"""
_RUN: Final = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


class FailedError(Exception):
    """A picture could not be taken; the message says why."""


def main() -> int:
    """Take all pictures; 1 when one could not be taken."""
    parser = argparse.ArgumentParser(description="Take the pictures in docs/pictures anew.")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="work in FOLDER, and leave everything there")
    keep: Path | None = parser.parse_args().keep
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no Chromium on the PATH: install it (Debian: apt install chromium)", file=sys.stderr)
        return 1
    try:
        with ExitStack() as stack:
            folder = keep or Path(stack.enter_context(TemporaryDirectory(prefix="nanobanana-")))
            folder.mkdir(parents=True, exist_ok=True)
            run_demo(folder)
            playwright = stack.enter_context(sync_playwright())
            browser = playwright.chromium.launch(executable_path=chromium, args=list(_ARGUMENTS))
            stack.callback(browser.close)
            static_pages(browser, folder / "data" / "demo" / "site")
            with dagster_pages(folder) as url:
                contact_sheet(browser, url)
                lineage(browser, url)
    except (FailedError, Error, subprocess.TimeoutExpired) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


def run_demo(folder: Path) -> None:
    """Work the sample catalogue off in the folder."""
    print("running the demo …")
    # Where the project keeps it: Dagster looks at it there, too.
    (folder / "data" / "catalogue").mkdir(parents=True, exist_ok=True)
    shutil.copy2(SAMPLE, folder / "data" / "catalogue")
    # A few at a time, or all are sent within a second, and spending over time is a single step.
    environment = {**_environment(), "NANOBANANA_MAX_IN_FLIGHT": "6"}
    ended = subprocess.run(_command("demo"), cwd=folder, env=environment, check=False, timeout=600)  # noqa: S603 - our own program
    if ended.returncode:
        raise FailedError(f"the demo ended with {ended.returncode}")


def static_pages(browser: Browser, site: Path) -> None:
    """The pages that need no server."""
    for name, height in (("gallery", 860), ("costs", 1560)):
        with page_of(browser, width=1280, height=height) as page:
            page.goto((site / f"{name}.html").as_uri())
            page.wait_for_load_state("networkidle")
            keep_picture(page, name)


def contact_sheet(browser: Browser, url: str) -> None:
    """The page of a shard, with its contact sheet open."""
    with page_of(browser, width=1280, height=760) as page:
        page.goto(f"{url}/assets/images?view=partitions&partition={SHARD}")
        page.get_by_text("contact_sheet", exact=True).wait_for()
        page.locator("tr", has_text="contact_sheet").get_by_text("[Show Markdown]").click()
        page.get_by_role("dialog").locator("img").first.wait_for()
        # Behind the dialogue: what was made, not where on this machine.
        page.get_by_role("heading", name=SHARD).or_(page.get_by_text(SHARD, exact=True).last).first.evaluate(
            "element => element.scrollIntoView({block: 'center'})"
        )
        page.wait_for_timeout(_SETTLE_MS)
        keep_picture(page, "contact-sheet")


def lineage(browser: Browser, url: str) -> None:
    """The lineage of the assets."""
    with page_of(browser, width=1560, height=1050, local_storage=_LAYOUT) as page:
        # From the first to the last asset, as a person clicks through them: then each is newer than what it is made of.
        for assets, partition in _IN_ORDER:
            materialise(page, url, assets, partition)
        wait_for_report(page, url, time.time())
        page.goto(url + _LINEAGE)
        page.get_by_text("gallery", exact=True).last.wait_for()
        fold_side_bar(page)
        page.get_by_text("Loading").first.wait_for(state="hidden")
        # Checks and partitions come after the states.
        page.wait_for_timeout(_SETTLE_MS)
        keep_picture(page, "dagster")


def fold_side_bar(page: Page) -> None:
    """Give the graph the room of the list beside it, and have it placed anew in the middle."""
    # Dagster names neither the button nor the canvas: the button is the one beside "Jump to…".
    search = page.get_by_placeholder("Jump to…").bounding_box()
    if search is None:
        raise FailedError("Dagster's lineage has changed: there is no list beside the graph")
    page.mouse.click(search["x"] + search["width"] + 24, search["y"] + search["height"] / 2)
    page.wait_for_timeout(500)
    page.mouse.dblclick(200, 300)
    page.wait_for_timeout(_SETTLE_MS)


def materialise(page: Page, url: str, assets: Sequence[str], partition: str | None) -> None:
    """What the buttons Materialise and Observe do; returns when it is done. Costs nothing: the demo has made it all."""
    selector = {
        "repositoryLocationName": until("Dagster's code location", lambda: _location(page, url), _START_LIMIT_S),
        "repositoryName": "__repository__",
        "pipelineName": "__ASSET_JOB",
        "assetSelection": [{"path": [asset]} for asset in assets],
    }
    tags = [{"key": "dagster/partition", "value": partition}] if partition else []
    params = {"selector": selector, "mode": "default", "executionMetadata": {"tags": tags}}
    launched = ask(page, url, _LAUNCH, params=params)["launchPipelineExecution"]
    if launched["__typename"] != "LaunchRunSuccess":
        raise FailedError(f"Dagster refused to materialise {', '.join(assets)}: {launched}")

    def ended() -> str | None:
        status = ask(page, url, _RUN, id=launched["run"]["runId"])["runOrError"]["status"]
        return status if status in {"SUCCESS", "FAILURE", "CANCELED"} else None

    status = until(f"the end of the run of {', '.join(assets)}", ended, _START_LIMIT_S)
    if status != "SUCCESS":
        raise FailedError(f"the run of {', '.join(assets)} ended as {status}")


def wait_for_report(page: Page, url: str, after: float) -> None:
    """Wait for `report_sensor`, which brings the reports up to date by itself after generation."""

    def reported() -> bool:
        runs = ask(page, url, _REPORTS, after=after)["runsOrError"]["results"]
        return bool(runs) and all(run["status"] == "SUCCESS" for run in runs)

    until("the report after generation", reported, _START_LIMIT_S)


def _location(page: Page, url: str) -> str | None:
    entries = ask(page, url, _LOCATIONS)["workspaceOrError"]["locationEntries"]
    loaded = [e["name"] for e in entries if (e["locationOrLoadError"] or {}).get("__typename") == "RepositoryLocation"]
    return loaded[0] if loaded else None


def ask(page: Page, url: str, query: str, **variables: Any) -> Any:
    """The data that a GraphQL query gives."""
    answer = page.request.post(f"{url}/graphql", data={"query": query, "variables": variables}).json()
    if "errors" in answer:
        raise FailedError(json.dumps(answer["errors"])[:500])
    return answer["data"]


@contextmanager
def dagster_pages(folder: Path) -> Generator[str]:
    """`nanobanana dev` on a free port of this machine alone; all its processes are gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    print("starting Dagster …")
    command = _command("dev", "--port", str(port))
    log = folder / "dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, cwd=folder, env=_environment(), stdout=output, stderr=output, start_new_session=True
        )
    try:

        def ready() -> bool:
            if process.poll() is not None:
                raise FailedError(f"nanobanana dev ended: {log.read_text()[-500:]}")
            return f"open http://127.0.0.1:{port}" in log.read_text()

        until("Dagster", ready, _START_LIMIT_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        # It ends its own processes and runs when it is asked to. Killing is for when it doesn't.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_LIMIT_S)


@contextmanager
def page_of(
    browser: Browser, *, width: int, height: int, local_storage: dict[str, str] | None = None
) -> Generator[Page]:
    """A page in a window of this size; whatever it complains of is printed."""
    context = browser.new_context(viewport={"width": width, "height": height}, locale="en-GB", timezone_id="UTC")
    context.set_default_timeout(_LIMIT_MS)
    # On top of what the page itself keeps, so that its own choices last from one view to the next.
    stored = json.dumps(list((local_storage or {}).items()))
    context.add_init_script(f"for (const [key, value] of {stored}) localStorage.setItem(key, value)")
    page = context.new_page()
    page.on("pageerror", lambda error: print(f"  the page fails: {error}", file=sys.stderr))
    try:
        yield page
    finally:
        context.close()


def keep_picture(page: Page, name: str) -> None:
    """Write what the page shows as a PNG: as it is when that is small, else in 256 colours."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    file = PICTURES / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, optimize=True)
    if file.stat().st_size > MOST_BYTES:
        palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT)
        picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file.relative_to(PROJECT)}: {picture.width} x {picture.height}, {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise FailedError(f"{file.name} has {size:,} bytes, more than {MOST_BYTES:,}: make the window smaller")


def until(what: str, look: Callable[[], _T | None], within_s: float) -> _T:
    """What `look` finds as soon as it finds something."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with suppress(Error):
            if found := look():
                return found
        time.sleep(0.3)
    raise FailedError(f"{what} did not come within {within_s:.0f} s")


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nanobanana_pipeline.cli", *arguments]


def _environment() -> dict[str, str]:
    """The variables of this process, without those that would lead the demo elsewhere."""
    inherited = os.environ  # noqa: TID251 - handed on to the commands, not read
    kept = {name: value for name, value in inherited.items() if not name.startswith(("NANOBANANA_", "DAGSTER_"))}
    return {**kept, "PYTHONPATH": str(PROJECT)}


if __name__ == "__main__":
    sys.exit(main())
