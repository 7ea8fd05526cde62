"""A disk that is full in the middle of a run: one line that says so, and nothing that was paid for is lost."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.e2e.command import Place, billed, finish, submits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_PROMPTS = 60
_PICTURE_BYTES = 200_000
# A disk of its own for a folder, which is gone with the command.
_MOUNT = 'mount -t tmpfs -o size=6m tmpfs "$0"; exec "$@"'
_ON_A_SMALL_DISK = ("unshare", "--mount", "--map-root-user", "sh", "-ec", _MOUNT)


def _can_be_had(small_disk: tuple[str, ...]) -> bool:
    try:
        return subprocess.run([*small_disk, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], home: Path
) -> None:
    """It was a traceback, and was called a defect of ours, with a report to send in."""
    provider = simulator(latency=0.05, cached_picture=True, picture_bytes=_PICTURE_BYTES)
    here = Place.with_provider(tmp_path, provider, LEDGER_URL=f"sqlite:///{tmp_path}/ledger.sqlite")
    here.furnish(home)
    here.catalogue({f"p{n}": f"picture {n}" for n in range(_PROMPTS)})
    images = here.output / "images"
    images.mkdir(parents=True)
    small_disk = (*_ON_A_SMALL_DISK, str(images))
    if not _can_be_had(small_disk):
        pytest.skip("no mount namespaces here: a small disk can't be had")
    ended = replace(here, within=small_disk).run("run")
    assert ended.code == 1
    assert "No space left on device" in ended.only_line
    assert "make room" in ended.only_line
    assert "Traceback" not in ended.err

    # The small disk is gone with all that was on it, which only the provider has yet.
    after = here.run("run", "--json")
    assert (after.code, after.json["items"]["succeeded"]) == (0, _PROMPTS)
    assert here.run("repair").code == 0
    assert sum(path.is_file() for path in images.rglob("*")) == _PROMPTS
    assert len(submits(provider)) == _PROMPTS
    assert after.json["total"]["cost_usd"] == str(billed(provider))


# Waits two seconds for room, where a person has ten minutes.
_IMPATIENT = """
from nanobanana_pipeline.cli import program
from nanobanana_pipeline.ledger import database

database.LOSS_PATIENCE_S = 2.0
program()
"""


def test_a_disk_that_is_full_with_the_books_on_it_is_one_line(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess]
) -> None:
    """As everybody has it: images, ledger and Dagster's state in one folder. It was called a defect of ours."""
    provider = simulator(latency=0.05, cached_picture=True, picture_bytes=_PICTURE_BYTES)
    here = Place.with_provider(tmp_path, provider)
    here.catalogue({f"p{n}": f"picture {n}" for n in range(_PROMPTS)})
    here.output.mkdir(parents=True)
    small_disk = (*_ON_A_SMALL_DISK, str(here.output))
    if not _can_be_had(small_disk):
        pytest.skip("no mount namespaces here: a small disk can't be had")
    ended = finish(replace(here, within=small_disk).start("run", program=("-c", _IMPATIENT)))
    assert ended.code == 1
    assert "defect" not in ended.err
    assert "room" in ended.only_line
