"""Runs that wait for an approval, through Dagster: what they leave alone, and what they never ask or pay for twice."""

import re

import pytest

from nanobanana_pipeline.reporting.approval import approve
from nanobanana_pipeline_tests.orchestration.conftest import Orchestra, failure_of, rows


def test_a_run_without_its_approval_sends_nothing_that_is_of_unknown_outcome(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To send it again is to pay again: with `on_unknown = resubmit` as with any other request, once it is approved."""
    pipeline = orchestra.pipeline
    pipeline.simulator.set_faults([{"fault": "answer_lost", "times": 1}])
    pipeline.write(rows(3))
    orchestra.refresh()
    orchestra.generate()
    before = pipeline.table("attempts")
    assert {row["state"] for row in before} == {"unknown"}
    monkeypatch.setenv("NANOBANANA_ON_UNKNOWN", "resubmit")
    monkeypatch.setenv("NANOBANANA_APPROVE_ABOVE_USD", "0.01")

    refused = orchestra.generate()

    assert "nanobanana approve" in failure_of(refused)
    assert len(pipeline.accepted()) == 3
    assert pipeline.table("attempts") == before
    approve_in(orchestra, failure_of(refused))
    assert orchestra.generate().success
    assert len(pipeline.accepted()) == 6


def test_an_approved_regenerate_is_asked_and_paid_for_once(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Re-executed, it has nothing left to do: neither a question nor a bill."""
    pipeline = orchestra.pipeline
    pipeline.write(rows(3))
    orchestra.refresh()
    orchestra.generate()
    monkeypatch.setenv("NANOBANANA_APPROVE_ABOVE_USD", "0.01")
    refused = orchestra.generate(regenerate=True)
    assert len(pipeline.accepted()) == 3
    approve_in(orchestra, failure_of(refused))
    first = orchestra.generate(regenerate=True)
    assert first.success
    assert len(pipeline.accepted()) == 6

    again = orchestra.re_execute(first, regenerate=True)
    assert again.success
    assert len(pipeline.accepted()) == 6
    # Another run, not this one once more, is another question.
    assert "nanobanana approve" in failure_of(orchestra.generate(regenerate=True))


def approve_in(orchestra: Orchestra, message: str) -> None:
    """Do what the message says."""
    found = re.search(r"nanobanana approve (\w+)", message)
    assert found
    with orchestra.pipeline.open() as workspace:
        approve(workspace, found[1])
