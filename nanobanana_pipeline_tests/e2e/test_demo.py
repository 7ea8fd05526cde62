"""`nanobanana demo`: the first thing that a person runs, with nothing set up and nothing to pay."""

from pathlib import Path

import pytest

from nanobanana_pipeline_tests.e2e.command import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SAMPLE_IMAGES = 60


def test_the_demo_shows_everything_once_and_costs_nothing(tmp_path: Path) -> None:
    """It must work anywhere, ignore a real key, say what was made and where, and do nothing twice."""
    key = "sk-real-0123456789abcdef"
    here = Place(tmp_path, {"NANOBANANA_API_KEY": key})
    first = here.run("demo")
    assert first.code == 0, first.err
    assert first.took_s < 180
    assert "simulated" in first.out
    assert str(SAMPLE_IMAGES) in first.out
    assert "What to try next" in first.out
    demo = here.folder / "data" / "demo"
    assert [path.name for path in (here.folder / "data").iterdir()] == ["demo"]
    pictures = [path for path in (demo / "images").rglob("*") if path.suffix in {".png", ".jpg", ".webp"}]
    assert len(pictures) == SAMPLE_IMAGES
    assert [file for file in demo.rglob("*") if file.is_file() and key.encode() in file.read_bytes()] == []
    del here.environment["NANOBANANA_API_KEY"]
    assert here.query("SELECT status, count(*) AS n FROM results GROUP BY 1") == [
        {"status": "succeeded", "n": SAMPLE_IMAGES}
    ]
    assert here.run("status", "--json").json["mode"] == "simulated"

    second = here.run("demo")
    assert second.code == 0
    assert "nothing was submitted or paid" in second.out
    book = (demo / "simulator" / "book.jsonl").read_text()
    assert book.count('"accepted"') == SAMPLE_IMAGES
