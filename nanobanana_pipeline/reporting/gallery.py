"""What the gallery shows, as data for its page: every item in two parts, a light one for the wall and one to look into.

The parts come in chunks that the page loads when it needs them, so it is quick however much there is. All of it is read
from the ledger in one snapshot, a shard at a time: memory does not grow with the gallery.
"""

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.publishing import STATUS_OF, image_rows
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema, statement
from nanobanana_pipeline.ledger.statement import ItemStatement
from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline.reporting.figures import is_current
from nanobanana_pipeline.reporting.site import SITE, SiteFolder
from nanobanana_pipeline.reporting.thumbnails import Pictured, existing, make_missing, thumbnail_path

MOST_ITEMS: Final = 200_000
"""Items on the page; a browser's tab holds so many with ease, and a person looks at fewer."""
MOST_LINKED_ITEMS: Final = 40_000
"""The same where every picture has a signed link, some hundred bytes that can't be made smaller."""
_ITEMS_A_CHUNK: Final = 2_000
_DETAILS_A_CHUNK: Final = 250

Json = dict[str, Any]


class Gallery:
    """Writes the gallery's data; `shown` and `left_out` count items, `images` their current images."""

    def __init__(self, workspace: Workspace, site: SiteFolder) -> None:
        self._workspace = workspace
        self._site = site
        self._facets = {name: _Facet() for name in ("catalogue", "campaign", "status", "ratio", "resolution")}
        self._wall = _Chunks(site, "gallery-items", _ITEMS_A_CHUNK)
        self._details = _Chunks(site, "gallery-details", _DETAILS_A_CHUNK)
        self._most = MOST_ITEMS if site.links_until is None else MOST_LINKED_ITEMS
        self.shown = self.left_out = self.images = 0

    def write(self) -> str:
        """Make the missing thumbnails, then write the data; the script that the page loads first."""
        # Before the snapshot: a reader that stays for minutes would keep the ledger's log from being tidied up.
        thumbnails = _make_thumbnails(self._workspace)
        with self._workspace.ledger.database.read() as connection:
            for shard in _shards(connection):
                self._add_shard(connection, shard, thumbnails)
        stamp = self._workspace.ledger.stamp
        index: Json = {
            "generated_at": time.time_ns() // 1_000_000,
            "links_until": self._site.links_until,
            "simulated": self._workspace.settings.simulated if stamp is None else stamp.mode == "simulated",
            "items": self.shown,
            "left_out": self.left_out,
            "facets": {name: facet.entries() for name, facet in self._facets.items()},
            "walls": self._wall.finish(),
            "details": self._details.finish(),
            "details_a_chunk": _DETAILS_A_CHUNK,
        }
        links = self._site.links([f"{SITE}/{path}" for path in self.scripts])
        index["links"] = {path.removeprefix(f"{SITE}/"): link for path, link in links.items()}
        return self._site.write_data("gallery", index)

    @property
    def scripts(self) -> list[str]:
        """The scripts that the page loads later."""
        return [*self._wall.paths, *self._details.paths]

    def _add_shard(self, connection: Connection, shard: str, thumbnails: set[str]) -> None:
        items, attempts = statement.shard_statement(connection, shard)
        of_item: dict[str, list[Any]] = {}
        for attempt in attempts:
            of_item.setdefault(attempt.item_id, []).append(attempt)
        links = self._site.links(_pictures(attempts, thumbnails))
        for entry in items:
            if self.shown >= self._most:
                self.left_out += 1
                continue
            images = image_rows(entry)
            self.shown += 1
            self.images += len(images)
            request = Request.from_json(entry.item.body)
            thumbnail = images[0]["sha256"] if images and images[0]["sha256"] in thumbnails else ""
            thumbnail = links.get(thumbnail_path(thumbnail), thumbnail)
            self._wall.add(self._wall_entry(entry, request, images, thumbnail))
            self._details.add(_detail(entry, request, images, of_item.get(entry.item.item_id, []), links))

    def _wall_entry(self, entry: ItemStatement, request: Request, images: list[Json], thumbnail: str) -> list[Any]:
        """What the wall, the filters and the search need; `gallery.js` names the places in the same order.

        `thumbnail` is the hash or the link of one, or empty.
        """
        item, facets = entry.item, self._facets
        first = images[0] if images else None
        active = bool(item.active)
        return [
            item.item_id,
            request.prompt,
            item.prompt_id,
            item.sample,
            facets["catalogue"].number(item.catalogue, counted=active),
            facets["campaign"].number(item.campaign, counted=active),
            facets["status"].number(STATUS_OF[ItemState(item.state)], counted=active),
            facets["ratio"].number(request.aspect_ratio, counted=active),
            facets["resolution"].number(item.resolution, counted=active),
            first["width"] if first else 0,
            first["height"] if first else 0,
            thumbnail,
            len(images),
            entry.cost_micros,
            (entry.attempt.stored_at if entry.attempt else None) or 0,
            int(active),
        ]


class _Facet:
    """The values that items can be filtered by, each with how many items of the catalogues have it."""

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {}
        self._counts: Counter[str | None] = Counter()

    def number(self, value: str | None, *, counted: bool) -> int:
        self._counts[value] += counted
        return self._numbers.setdefault(value, len(self._numbers))

    def entries(self) -> list[tuple[str | None, int]]:
        return [(value, self._counts[value]) for value in self._numbers]


class _Chunks:
    """A long list, written as scripts of so many entries each."""

    def __init__(self, site: SiteFolder, name: str, size: int) -> None:
        self._site = site
        self._name = name
        self._size = size
        self._entries: list[Any] = []
        self.paths: list[str] = []

    def add(self, entry: Any) -> None:
        self._entries.append(entry)
        if len(self._entries) == self._size:
            self.finish()

    def finish(self) -> list[str]:
        if self._entries:
            self.paths.append(self._site.write_data(f"{self._name}-{len(self.paths)}", self._entries))
            self._entries = []
        return self.paths


def _make_thumbnails(workspace: Workspace) -> set[str]:
    """Make what is missing; the hashes of the images that have a thumbnail."""
    there = existing(workspace.images)
    items, attempts = schema.items, schema.attempts
    query = (
        sa.select(attempts.c.images)
        .select_from(attempts.join(items, items.c.item_id == attempts.c.item_id))
        # What was adopted from tables may lack its files, until `repair` has fetched them again.
        .where(is_current(), attempts.c.images.is_not(None))
    )
    with workspace.ledger.database.read() as connection:
        missing = {
            image["sha256"]: Pictured(image["path"], image["sha256"])
            for listed in connection.execute(query.execution_options(yield_per=5000)).scalars()
            for image in orjson.loads(listed)
            if image["sha256"] not in there
        }
    there.update(image.sha256 for image, made in make_missing(workspace.images, missing.values()) if made)
    return there


def _shards(connection: Connection) -> list[str]:
    shards = schema.shards
    query = sa.select(shards.c.shard).order_by(shards.c.catalogue, shards.c.number)
    return list(connection.execute(query).scalars())


def _pictures(attempts: Iterable[Any], thumbnails: set[str]) -> list[str]:
    """The paths of all files that may be shown of these attempts."""
    images = [image for attempt in attempts for image in orjson.loads(attempt.images or "[]")]
    small = [thumbnail_path(image["sha256"]) for image in images if image["sha256"] in thumbnails]
    return [*small, *(image["path"] for image in images)]


def _detail(
    entry: ItemStatement, request: Request, images: list[Json], attempts: list[Any], links: dict[str, str]
) -> Json:
    """What is shown of one item when a person looks into it."""
    item, attempt = entry.item, entry.attempt
    tried = [_attempt(row) for row in attempts]
    paths = {path for one in tried for path in one["images"]}
    return {
        "shard": item.shard,
        "model": request.model,
        "image_urls": request.image_urls,
        "response_modalities": request.response_modalities or (),
        "labels": _parsed(item.labels),
        "note": item.note,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "total_tokens": entry.total_tokens,
        "at_risk_micros": entry.at_risk_micros,
        "text": attempt.text if attempt else None,
        "metadata": _parsed(attempt.metadata) if attempt else None,
        "images": [{name: image.get(name) for name in _IMAGE_FACTS} for image in images],
        "attempts": tried,
        "links": {path: links[path] for path in sorted(paths) if path in links},
    }


def _attempt(row: Any) -> Json:
    return {
        **{name: getattr(row, name) for name in _ATTEMPT_FACTS},
        "images": [image["path"] for image in orjson.loads(row.images or "[]")],
    }


def _parsed(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


_IMAGE_FACTS: Final = (
    "path",
    "width",
    "height",
    "expected_width",
    "expected_height",
    "bytes",
    "format",
    "has_c2pa",
    "sha256",
)
_ATTEMPT_FACTS: Final = (
    "attempt",
    "state",
    "cause",
    "day",
    "created_at",
    "submitted_at",
    "completed_at",
    "task_id",
    "cost_micros",
    "at_risk_micros",
    "cost_source",
    "price_version",
    "total_tokens",
    "error_kind",
    "error_code",
    "error_message",
    "run_id",
)
