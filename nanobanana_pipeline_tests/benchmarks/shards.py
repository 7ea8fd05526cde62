"""`python -m nanobanana_pipeline_tests.benchmarks.shards`: seconds that Dagster takes with many shards.

What is measured: a tick of `generation_sensor` with work in every shard, and with work in none; and the time until the
page of the asset `images` lists its partitions, in headless Chromium on a real `dagster dev`. The shards are entered in
the ledger straight away: no image is made.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import dagster as dg
from playwright.sync_api import sync_playwright

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.ledger import Ledger, Stamp
from nanobanana_pipeline.orchestration.definitions import build_defs
from nanobanana_pipeline.orchestration.instance import prepare_home
from nanobanana_pipeline.orchestration.resources import NanoBananaResource
from nanobanana_pipeline.settings import Settings, load_settings
from nanobanana_pipeline_tests.e2e.dagster_dev import DagsterDev

say = partial(print, flush=True)

_ROUNDS: Final = 3
_PAGE_LIMIT_MS: Final = 120_000


def main() -> None:
    """Measure, and print the figures as JSON, the ticks first."""
    parser = argparse.ArgumentParser(prog="shards", description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=100, help="in each shard")
    parser.add_argument("--made", type=int, default=1_000, help="shards that were materialised before")
    parser.add_argument("--files", type=int, default=10_000, help="in the catalogue folder, each a catalogue")
    parser.add_argument("--no-page", action="store_true", help="measure the ticks alone")
    arguments = parser.parse_args()
    with _folder() as folder:
        environment = {
            "NANOBANANA_OUTPUT": str(folder / "output"),
            "NANOBANANA_CATALOGUE": str(folder / "catalogue"),
            "NANOBANANA_BASE_URL": "http://127.0.0.1:9",
            "DAGSTER_HOME": str(prepare_home(folder / "dagster")),
        }
        os.environ.update(environment)
        settings = load_settings()
        figures: dict[str, Any] = {"shards": arguments.shards, "items": arguments.shards * arguments.items}
        with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
            names = _enter(settings, arguments.shards, arguments.items)
            instance.add_dynamic_partitions("shards", names)
            for name in names[: arguments.made]:
                instance.report_runless_asset_event(dg.AssetMaterialization("images", partition=name))
            for number in range(arguments.files):
                (folder / "catalogue" / f"file-{number:06d}.parquet").touch()
            for sensor in ("catalogue_sensor", "generation_sensor", "alert_sensor"):
                figures[f"{sensor}_s"] = _seconds(lambda sensor=sensor: _tick(sensor, instance))
            with Ledger(settings.ledger) as ledger, ledger.database.write() as connection:
                connection.execute(schema.items.update().values(state="done"))
            figures["generation_sensor_with_nothing_to_do_s"] = _seconds(lambda: _tick("generation_sensor", instance))
        say(json.dumps(figures))
        if not arguments.no_page:
            with DagsterDev(folder / "dagster", environment) as dagster:
                figures["asset_page_s"] = _page(dagster.url, names[0])
        say(json.dumps(figures))


@contextmanager
def _folder() -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="shards-"))
    (folder / "catalogue").mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _enter(settings: Settings, shards: int, items: int) -> list[str]:
    """Enter shards of pending items in the ledger; returns their names."""
    names = [f"cat-{number:06d}" for number in range(shards)]
    with Ledger(settings.ledger) as ledger:
        ledger.claim(Stamp("live", "http://127.0.0.1:9"))
        with ledger.database.write() as connection:
            connection.execute(schema.catalogues.insert().values(catalogue="cat", next_position=shards * items))
            request = {"request_hash": "r", "model": "nano_banana_2", "resolution": "1K", "body": "{}"}
            connection.execute(schema.requests.insert().values(request))
            listed = [
                {"shard": name, "catalogue": "cat", "number": n, "prompts": items} for n, name in enumerate(names)
            ]
            connection.execute(schema.shards.insert(), listed)
            for number, name in enumerate(names):
                rows = [
                    {
                        "item_id": f"{number:06d}-{n:06d}",
                        "catalogue": "cat",
                        "prompt_id": f"p{number * items + n}",
                        "sample": 1,
                        "shard": name,
                        "position": number * items + n,
                        "request_hash": "r",
                        "active": True,
                        "state": "pending",
                        "attempts": 0,
                    }
                    for n in range(items)
                ]
                connection.execute(schema.items.insert(), rows)
    return names


def _tick(name: str, instance: dg.DagsterInstance) -> None:
    sensor = build_defs().resolve_sensor_def(name)
    resources = {"nano_banana": NanoBananaResource.from_settings(load_settings())}
    with dg.build_sensor_context(instance=instance, resources=resources) as context:
        sensor(context)


def _seconds(action: Callable[[], Any]) -> float:
    """The median of a few rounds."""
    took: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return round(statistics.median(took), 2)


def _page(url: str, shard: str) -> float:
    """From going to the asset's page until its partitions are listed, once the pages' own code is in the cache."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(_PAGE_LIMIT_MS)
        page.goto(f"{url}/assets")
        page.get_by_text("images", exact=True).first.wait_for()

        def opened() -> None:
            page.goto(f"{url}/assets/images?view=partitions")
            page.get_by_text(shard).first.wait_for()

        took = _seconds(opened)
        browser.close()
        return took


if __name__ == "__main__":
    main()
