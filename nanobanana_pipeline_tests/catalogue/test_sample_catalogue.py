"""The sample catalogue that comes with the project."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from nanobanana_pipeline.catalogue.reading import find_catalogues
from nanobanana_pipeline.catalogue.validation import validate
from nanobanana_pipeline.model_specs.loader import load_spec

ROOT = Path(__file__).parent.parent.parent
SAMPLE = ROOT / "data" / "catalogue" / "sample.parquet"
SCRIPT = ROOT / "scripts" / "make_sample_catalogue.py"


def test_sample_shows_everything() -> None:
    """A newcomer's first run should meet every option of the model, without one bad row, and be over soon."""
    spec = load_spec()
    [source] = [found for found in find_catalogues(str(SAMPLE.parent)) if found.name == "sample"]
    batches = list(validate(source, spec))
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    assert not any(batch.rejected for batch in batches)
    assert len(prompts) >= 48
    assert sum(prompt.samples for prompt in prompts) == 60
    assert {prompt.request.aspect_ratio for prompt in prompts} == {None, *spec.aspect_ratios}
    assert {prompt.request.resolution for prompt in prompts} == {None, *spec.resolutions}
    assert {len(prompt.request.image_urls) for prompt in prompts} == {0, 1, 2, 3}
    assert sum(prompt.request.resolution in {"2K", "4K"} for prompt in prompts) <= 8
    assert all(prompt.campaign and prompt.labels for prompt in prompts)
    assert not any(prompt.prompt_id.startswith("auto-") for prompt in prompts)


def test_script_makes_the_sample_again(tmp_path: Path) -> None:
    """A binary file in a repository is only as good as the way to make it again."""
    made = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for path in made:
        subprocess.run([sys.executable, str(SCRIPT), str(path)], check=True, timeout=200)
    assert made[0].read_bytes() == made[1].read_bytes()
    assert pq.read_table(made[0]).equals(pq.read_table(SAMPLE))
