"""The folder of the pages: the parts they share, and writing data that a page can load from the file system.

A page opened from a disk may load scripts but fetch nothing, so data are scripts that assign one value. Their names
hold a hash of what is in them: a page that is being replaced never sees half old and half new data. What the data are
is up to `cost_page` and `gallery`.

Beside a folder's pages everything is reached by relative paths. A bucket is private as a rule, so there every link is a
signed one, for a limited time: whoever is given the link of a page sees all of it, and needs no key.
"""

import hashlib
import html
import logging
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, Final

import orjson

from nanobanana_pipeline import reporting
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.object_stores.opening import ObjectStoreError, open_uri
from nanobanana_pipeline.storage import durable

SITE: Final = "site"
"""The folder of the pages, under the output."""

_STATIC: Final = files(reporting).joinpath("static")
_ASSETS: Final = (
    "page.css",
    "page.js",
    "costs.js",
    "gallery.js",
    "icon.svg",
    "vendor/uPlot-1.6.32.min.js",
    "vendor/uPlot-1.6.32.min.css",
    "vendor/uPlot-LICENSE.txt",
)
_KEPT_S: Final = 3600.0
"""How long replaced data stay: a page that someone has open still loads its own."""

# JSON is nearly JavaScript. What a browser, or a tool that shows the file inside HTML, could take for the end of a
# script or the beginning of a comment is written as an escape, and so are two line ends that only JSON has in strings.
_ESCAPES: Final = tuple(
    (character.encode(), f"\\u{ord(character):04x}".encode()) for character in ("<", ">", "&", "\u2028", "\u2029")
)


# What a template names of its own folder: parts and other pages.
_OWN: Final = re.compile(r"(?<=[=\"])((?:assets|data)/[\w./-]+|\w+\.html)(?:\?v=\w+)?(?=\")")

_log = logging.getLogger(__name__)


class SiteFolder:
    """The pages of one output, a folder or an object store.

    `links_until` (milliseconds since 1970) is when the signed links written from now on end; None where paths do.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._store = workspace.images
        self._root = workspace.output.rstrip("/")
        self._filesystem, self._base = open_uri(f"{self._root}/{SITE}")
        self._hours = workspace.settings.link_hours if durable.is_remote(self._root) else 0
        self.links_until = self._end_of_links()

    def links(self, paths: Sequence[str]) -> dict[str, str]:
        """The signed link of each path (relative to the output); empty where relative paths lead there."""
        if self.links_until is None:
            return {}
        _, root = open_uri(self._root)
        signed = self._filesystem.sign_all([f"{root}/{path}" for path in paths], self._hours * 3600)
        return dict(zip(paths, signed, strict=True))

    def link(self, name: str) -> str:
        """What a person opens to see a page: a signed link, or where it is."""
        path = f"{SITE}/{name}"
        return self.links([path]).get(path, self.location(name))

    def _end_of_links(self) -> int | None:
        if not self._hours:
            return None
        try:
            self._filesystem.sign_all([f"{self._base}/index.html"], self._hours * 3600)
        except ObjectStoreError as error:
            # A report without links is worth more than none.
            _log.warning("the pages in %s have no signed links: %s", self._root, error)
            return None
        return time.time_ns() // 1_000_000 + self._hours * 3_600_000

    def location(self, name: str) -> str:
        """Where a page is: an absolute path, or a URI."""
        return self._filesystem.unstrip_protocol(f"{self._base}/{name}").removeprefix("file://")

    def write_data(self, name: str, value: Any) -> str:
        """Write `value` as the script `data/<name>-<hash>.js`, which sets `nanobanana.data[name]`; its path."""
        body = script(name, value)
        path = f"data/{name}-{hashlib.sha256(body).hexdigest()[:12]}.js"
        # The same name is the same content.
        if not self._store.exists(f"{SITE}/{path}", len(body)):
            self._store.write(f"{SITE}/{path}", body)
        return path

    def write_page(self, page: str, data: str, keep: Iterable[str] = ()) -> str:
        """Write the page `page` with its data script `data`, and remove data of its kind that it no longer loads.

        `keep` are the further scripts that it may load. Returns the page's location.
        """
        # The page comes last: whatever it names is there already.
        self._write_template(page, data)
        self._remove_stale(page, {data, *keep})
        return self.location(f"{page}.html")

    def write_index(self) -> str:
        """Write the page that a server shows first; its location."""
        self._write_template("index")
        return self.location("index.html")

    def _write_template(self, page: str, data: str = "") -> None:
        version = hashlib.sha256()
        for asset in _ASSETS:
            content = _STATIC.joinpath(asset).read_bytes()
            version.update(content)
            self._write_if_changed(f"assets/{asset}", content)
        template = _STATIC.joinpath(f"{page}.html").read_text(encoding="utf-8")
        # Behind a server, a browser could keep last month's script and give it this month's data.
        filled = template.replace("{{version}}", version.hexdigest()[:12]).replace("{{data}}", data)
        self._write_if_changed(f"{page}.html", self._with_links(filled).encode())

    def _with_links(self, page: str) -> str:
        """`page` with every part and page that it names by a signed link, where there are such."""
        names = {match[1] for match in _OWN.finditer(page)}
        links = self.links([f"{SITE}/{name}" for name in sorted(names)])
        return _OWN.sub(lambda match: html.escape(links[f"{SITE}/{match[1]}"]), page) if links else page

    def _write_if_changed(self, name: str, data: bytes) -> None:
        try:
            if self._store.read(f"{SITE}/{name}") == data:
                return
        except FileNotFoundError:
            pass
        self._store.write(f"{SITE}/{name}", data)

    def _remove_stale(self, page: str, keep: set[str]) -> None:
        folder, now = f"{self._base}/data", time.time()
        self._filesystem.invalidate_cache(folder)
        there = {f"data/{path.rpartition('/')[2]}" for path in self._filesystem.ls(folder, detail=False)}
        stale = {name for name in there if name.startswith(f"data/{page}-")} - keep
        # Their own age says nothing: they may have been written last month, and be in use until just now.
        note = f"{SITE}/data/replaced-{page}.json"
        before = self._replaced(note)
        replaced = {name: before.get(name, now) for name in sorted(stale)}
        gone = {name for name, since in replaced.items() if since < now - _KEPT_S}
        for name in gone:
            with suppress(FileNotFoundError):  # another report was quicker
                self._filesystem.rm_file(f"{self._base}/{name}")
        after = {name: since for name, since in replaced.items() if name not in gone}
        if after != before:
            self._store.write(note, orjson.dumps(after))

    def _replaced(self, note: str) -> dict[str, float]:
        """Since when data are replaced, by name, in seconds since 1970."""
        try:
            return orjson.loads(self._store.read(note))
        except FileNotFoundError:
            return {}


def script(name: str, value: Any) -> bytes:
    """JavaScript that sets `nanobanana.data[name]` to `value`, whatever strings are in it."""
    data = orjson.dumps(value)
    for character, escape in _ESCAPES:
        data = data.replace(character, escape)
    return b"((globalThis.nanobanana??={}).data??={})[%s]=%s;\n" % (orjson.dumps(name), data)
