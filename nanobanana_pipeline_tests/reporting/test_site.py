"""The pages' folder: written anew in one step each, and tidied up without taking anything from an open page."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanobanana_pipeline.reporting.pages import write_cost_report, write_site
from nanobanana_pipeline_tests.reporting.conftest import World


def test_replaced_data_stay_for_a_while(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the page open still loads its parts; an hour later they must not pile up.

    Last night's gallery, open in the morning, lost its parts with the first report of the day.
    """
    made = world()
    data = Path(write_cost_report(made.workspace)).parent / "data"
    (first,) = data.glob("costs-*.js")
    last_night = time.time() - 30_000
    os.utime(first, (last_night, last_night))

    write_cost_report(made.workspace)

    assert len(list(data.glob("costs-*.js"))) == 2
    an_hour_on = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: an_hour_on)
    write_site(made.workspace)
    assert not first.exists()
    assert len(list(data.glob("costs-*.js"))) == 2
    assert len(list(data.glob("gallery-*.js"))) == 1


def test_pages_can_be_written_to_an_object_store(world: Callable[..., World], bucket: str) -> None:
    """An output may be a bucket; the pages belong beside the images that they show."""
    made = world()
    settings = made.workspace.settings.model_copy(update={"output": f"{bucket}/output"})

    with made.elsewhere(settings) as workspace:
        site = write_site(workspace)

    assert site.gallery == f"{bucket}/output/site/gallery.html"
    assert workspace.images.exists("site/gallery.html")
    assert workspace.images.exists("site/assets/page.css")
