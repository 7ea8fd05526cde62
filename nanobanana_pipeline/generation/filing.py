"""Pictures into files, in threads: verified, hashed, written and flushed.

Decoding and flushing would hold up every other item on the event loop. Pictures that wait together go together: handing
one to a thread, and flushing the folder for it, costs as much as all else about it but its own flush. Which picture is
wanted, and what follows from a bad one, is `delivery`'s.
"""

import asyncio
import hashlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.answers import Downloaded
from nanobanana_pipeline.ledger.entries import Attempt
from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.storage.images import BadImage, ImageStore, verify_image

VerifyMode = Literal["full", "structure"]

THREADS: Final = 4
_TOGETHER: Final = 16
_ENOUGH: Final = 4
"""Waiting pictures that are worth another thread."""
_LOOKING: Final = threading.BoundedSemaphore(
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
"""Of all shards' threads, as many as there are cores look at a picture at once, and the others flush theirs.

Decoding is nothing but work: sixteen threads on one core took 8.2 ms a picture, where one took 6.6, and each held
another picture's pixels.
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """The `n`th picture of an attempt's task, as it came from `url`."""

    attempt: Attempt
    request: Request
    n: int
    url: str
    downloaded: Downloaded


Filed = dict[str, Any] | BadImage
"""An image file, as a row for the ledger, or why the picture is none."""


class Filing:
    """Files the pictures of one event loop in the threads of `executor`."""

    def __init__(self, images: ImageStore, spec: ModelSpec, executor: Executor, *, verify: VerifyMode) -> None:
        self._images = images
        self._spec = spec
        self._executor = executor
        self._verify: VerifyMode = verify
        # An object store is slow to answer and quick to be asked: there, each picture has a thread of its own.
        self._together, self._enough = (_TOGETHER, _ENOUGH) if images.local else (1, 1)
        self._waiting: deque[tuple[Picture, asyncio.Future[Filed]]] = deque()
        self._busy = 0

    async def file(self, picture: Picture) -> Filed:
        """Verify a picture and store it; durable when this returns."""
        future: asyncio.Future[Filed] = asyncio.get_running_loop().create_future()
        self._waiting.append((picture, future))
        self._begin()
        return await future

    async def set_aside(self, picture: Picture) -> str:
        """Keep what can't be used as evidence; the path it is at."""
        keep = partial(self._images.set_aside, picture.attempt.attempt_id, picture.downloaded.data)
        return await asyncio.get_running_loop().run_in_executor(self._executor, keep)

    def _begin(self) -> None:
        while self._waiting and self._busy < THREADS and (not self._busy or len(self._waiting) >= self._enough):
            batch = [self._waiting.popleft() for _ in range(min(self._together, len(self._waiting)))]
            self._busy += 1
            work = asyncio.get_running_loop().run_in_executor(
                self._executor, self._file_all, [picture for picture, _ in batch]
            )
            work.add_done_callback(partial(self._done, [future for _, future in batch]))

    def _done(self, futures: Sequence["asyncio.Future[Filed]"], work: "asyncio.Future[list[Filed]]") -> None:
        self._busy -= 1
        error = None if work.cancelled() else work.exception()
        for number, future in enumerate(futures):
            if future.done():
                continue
            if work.cancelled():
                future.cancel()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(work.result()[number])
        self._begin()

    # --- in a thread -------------------------------------------------------------------------------------------------

    def _file_all(self, pictures: Sequence[Picture]) -> list[Filed]:
        """The verdict on each; all that are good are on the disk. What one can't be written for, none is."""
        filed: list[Filed] = []
        files: list[tuple[str, bytes]] = []
        for picture in pictures:
            try:
                row = self._row(picture)
            except BadImage as bad:
                filed.append(bad)
            else:
                filed.append(row)
                files.append((row["path"], picture.downloaded.data))
        self._images.write_all(files)
        return filed

    def _row(self, picture: Picture) -> dict[str, Any]:
        attempt, request, data = picture.attempt, picture.request, picture.downloaded.data
        content_type = picture.downloaded.content_type
        with _LOOKING:
            facts = verify_image(data, content_type=content_type, mode=self._verify, limits=self._spec.limits)
            sha256 = hashlib.sha256(data).hexdigest()
        path = self._images.path_for(
            attempt.catalogue, attempt.shard, attempt.prompt_id, attempt.sample, sha256, facts.ext, n=picture.n
        )
        expected = self._spec.expected_size(request.aspect_ratio, request.resolution)
        return {
            "n": picture.n,
            "path": path,
            "sha256": sha256,
            "bytes": len(data),
            "format": facts.format,
            "width": facts.width,
            "height": facts.height,
            "expected_width": expected[0] if expected else None,
            "expected_height": expected[1] if expected else None,
            "has_c2pa": facts.has_c2pa,
            "source_url": _without_signature(picture.url),
        }


def _without_signature(url: str) -> str:
    """The URL without query and fragment: they hold a signature, which is a key while it lasts. Nor with its user."""
    if url[:5].lower() == "data:":
        return "data:"
    # Not by urllib, which raises for what the client makes sense of: the image is here.
    scheme, _, rest = url.partition("?")[0].partition("#")[0].partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"
