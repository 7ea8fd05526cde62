"""The engine's lines: what went wrong, each once and with all that it takes to find it; nothing of what went well."""

import json
from decimal import Decimal

import pytest

from nanobanana_pipeline.generation.journal import on_stderr
from nanobanana_pipeline_tests.generation.pipelines import Pipeline

FAULTS = {"slow": "rate_limited_429", "odd": "failed", "lost": "answer_lost", "late": "url_expired"}


def test_what_goes_wrong_is_a_line_of_json_and_what_goes_well_is_none(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever watches a fleet greps for a run, an item or a task; a line for every good image would drown it."""
    pipeline.write([{"prompt_id": name, "prompt": name} for name in (*FAULTS, "fine", "well")])
    pipeline.simulator.set_faults([{"prompt": name, "fault": fault, "times": 1} for name, fault in FAULTS.items()])
    with on_stderr("json"):
        pipeline.run()

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    said = {(line["prompt_id"], line["event"], line["level"]) for line in lines}
    assert said == {
        ("slow", "refused", "warning"),
        ("odd", "failed", "warning"),
        ("lost", "unknown", "error"),
        ("late", "url_expired", "info"),
    }
    (failed,) = (line for line in lines if line["prompt_id"] == "odd")
    attempt = pipeline.attempts("odd")[0]
    assert (failed["run"], failed["shard"], failed["attempt"]) == ("run-1", "cat-000000", 1)
    assert (failed["item"], failed["task"], failed["attempt_id"]) == tuple(
        attempt[name] for name in ("item_id", "task_id", "attempt_id")
    )
    assert failed["error_kind"] == "provider_failure"
    assert "it is tried again" in failed["message"]
    assert pipeline.simulator.api_key not in json.dumps(lines)


def test_a_cap_without_room_is_one_line(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds for thousands of items alike."""
    pipeline.knobs["budget_usd"] = Decimal("0.01")
    pipeline.write([{"prompt": f"fox {n}"} for n in range(5)])
    with on_stderr("text"):
        pipeline.run()
    (line,) = capsys.readouterr().err.splitlines()
    assert "WARNING nanobanana.engine items of cat-000000 are deferred: the day cap of $0.010000" in line
