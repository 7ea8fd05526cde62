"""From a completed task to verified image files on disk.

The task is paid for when this begins, so nothing is given up lightly: a refused URL is asked for afresh, a download is
repeated, and what can't be used is kept aside as evidence. No image is generated twice here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation.answers import Downloaded, DownloadError
from nanobanana_pipeline.generation.client import Provider
from nanobanana_pipeline.generation.filing import Filing, Picture
from nanobanana_pipeline.generation.limits import backoff_s
from nanobanana_pipeline.generation.patience import Patience
from nanobanana_pipeline.ledger.entries import Attempt
from nanobanana_pipeline.storage.images import BadImage

FreshUrls = Callable[[], Awaitable[tuple[str, ...] | str]]
"""Asks for URLs that are valid now: () when the task has none any more, why in words when it could not be asked."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one image could not be had. `lasting` is False when another run may well get it."""

    message: str
    lasting: bool
    expired: bool = False


@dataclass(slots=True)
class Delivered:
    """The image files of a task, as rows for the ledger, and what went wrong with the others."""

    images: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def message(self) -> str:
        """The faults in words, each once."""
        return "; ".join(dict.fromkeys(fault.message for fault in self.faults))


class Delivery:
    """Downloads the images of completed tasks and has them filed."""

    def __init__(self, provider: Provider, filing: Filing, *, patience: Patience, at_once: int) -> None:
        self._provider = provider
        self._filing = filing
        self._patience = patience
        # Bounds the memory that whole bodies take.
        self._slots = asyncio.Semaphore(at_once)

    async def deliver(self, attempt: Attempt, request: Request, urls: tuple[str, ...], fresh: FreshUrls) -> Delivered:
        """Fetch every image of a task, with URLs that `fresh` asks for when the ones at hand have expired."""
        delivered = Delivered()
        valid = list(urls)
        renewals = 0
        for index in range(len(urls)):
            outcome = await self._one(attempt, request, valid[index], index + 1)
            while isinstance(outcome, Fault) and outcome.expired and renewals < self._patience.fresh_urls:
                renewals += 1
                renewed = await self.renewed(fresh)
                if isinstance(renewed, str):
                    # One lost poll once made a paid image unusable for good: not having been answered says nothing.
                    message = f"{outcome.message}, and no fresh URL could be asked for: {renewed}"
                    outcome = Fault(message, lasting=False)
                    break
                if len(renewed) <= index:
                    break
                valid = list(renewed) + valid[len(renewed) :]
                outcome = await self._one(attempt, request, valid[index], index + 1)
            if isinstance(outcome, Fault):
                delivered.faults.append(outcome)
            else:
                delivered.images.append(outcome)
        return delivered

    async def renewed(self, fresh: FreshUrls) -> tuple[str, ...] | str:
        """Fresh URLs, with every try that a poll deserves; why there are none, in words, when none was answered."""
        urls = await fresh()
        for number in range(1, self._patience.download_tries):
            if not isinstance(urls, str):
                break
            await self._back_off(number)
            urls = await fresh()
        return urls

    async def _one(self, attempt: Attempt, request: Request, url: str, n: int) -> dict[str, Any] | Fault:
        """One image from one URL, with every try that the URL deserves."""
        fault = Fault("not tried", lasting=False)
        for attempt_number in range(1, self._patience.download_tries + 1):
            async with self._slots:
                answer = await self._provider.download(url)
                if isinstance(answer, Downloaded):
                    picture = Picture(attempt, request, n, url, answer)
                    stored = await self._filing.file(picture)
                    if not isinstance(stored, BadImage):
                        return stored
                    if attempt_number == self._patience.download_tries:
                        kept = await self._filing.set_aside(picture)
                        return Fault(f"image {n}: {stored} (kept at {kept})", lasting=True)
                    fault = Fault(f"image {n}: {stored}", lasting=True)
            if isinstance(answer, DownloadError):
                fault = Fault(
                    f"image {n}: {answer.message}",
                    lasting=answer.kind != "retryable",
                    expired=answer.kind == "expired",
                )
                if fault.lasting:
                    return fault
            if attempt_number < self._patience.download_tries:
                await self._back_off(attempt_number)
        return fault

    async def _back_off(self, number: int) -> None:
        first_s = self._patience.download_backoff_s
        await asyncio.sleep(backoff_s(number, first_s=first_s, longest_s=25 * first_s))
