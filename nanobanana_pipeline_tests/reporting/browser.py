"""Opening the pages in a real browser, and noticing all that it asks for and complains of."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

ARGUMENTS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_LIMIT_MS = 120_000
AXE = Path(__file__).with_name("vendor") / "axe.min.js"
expect.set_options(timeout=_LIMIT_MS)


@contextmanager
def chromium_running() -> Generator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(ARGUMENTS), timeout=_LIMIT_MS
        )
        yield browser
        browser.close()


class Visit:
    """A page that is being looked at: `requests` are all its URLs, `complaints` its errors."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type in {"error", "warning"} else None,
        )

    def violations(self) -> list[str]:
        """What axe finds wrong with the page as it is now."""
        # Under the page's own policy nothing may be added to it, so axe comes in by the debugger's door.
        self.page.evaluate(f"() => {{ {AXE.read_text()} }}")
        found: list[dict[str, Any]] = self.page.evaluate(
            "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
        )
        return [f"{one['impact']}: {one['id']} at {one['nodes'][0]['target']}" for one in found]


@contextmanager
def visit(browser: Browser, path: str | Path, **context: Any) -> Generator[Visit]:
    """Open a page, a file or a URL; further arguments are those of a browser context (`viewport`, …)."""
    opened = browser.new_context(**context)
    opened.set_default_timeout(_LIMIT_MS)
    seen = Visit(opened.new_page())
    address = path if ":/" in str(path) else Path(path).as_uri()
    seen.page.goto(str(address))
    yield seen
    opened.close()
