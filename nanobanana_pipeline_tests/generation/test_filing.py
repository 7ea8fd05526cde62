"""Pictures into files: how many are looked at at once."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.catalogue.identity import Request
from nanobanana_pipeline.generation import filing
from nanobanana_pipeline.generation.answers import Downloaded
from nanobanana_pipeline.generation.filing import THREADS, Filing, Picture
from nanobanana_pipeline.ledger.entries import Attempt
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.storage.images import ImageStore
from nanobanana_pipeline.storage.verification import verify_image
from nanobanana_pipeline_tests.storage.pictures import encoded, picture

_SHARDS = 4
_PICTURES = 24


def _numbered(number: int, data: bytes) -> Picture:
    known: dict[str, Any] = {field.name: None for field in fields(Attempt)}
    known |= {"catalogue": "c", "shard": "c-000000", "prompt_id": f"p{number}", "sample": 1}
    return Picture(
        Attempt(**known), Request("nano-banana-2", "a cat"), 1, "https://a/b.jpg", Downloaded(data, "image/jpeg")
    )


def test_shards_together_look_at_no_more_pictures_at_once_than_there_are_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding is nothing but work: more at once cost a quarter more each, and hold as many pictures' pixels."""
    looking = most = 0
    lock = threading.Lock()

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal looking, most
        with lock:
            looking += 1
            most = max(most, looking)
        try:
            return verify_image(*arguments, **options)
        finally:
            with lock:
                looking -= 1

    monkeypatch.setattr(filing, "verify_image", counted)
    data = encoded(picture(1200, 1200), "jpeg")

    async def file_all() -> list[Any]:
        with ThreadPoolExecutor(_SHARDS * THREADS) as executor:
            shards = [Filing(ImageStore(tmp_path), load_spec(), executor, verify="full") for _ in range(_SHARDS)]
            wanted = [shards[number % _SHARDS].file(_numbered(number, data)) for number in range(_PICTURES)]
            return await asyncio.gather(*wanted)

    filed = asyncio.run(file_all())

    assert [row["width"] for row in filed] == [1200] * _PICTURES
    assert 1 <= most <= len(os.sched_getaffinity(0))
