"""A few kills on every change; `make chaos` does a thousand."""

from pathlib import Path

import pytest

from nanobanana_pipeline_tests.chaos.__main__ import kinds
from nanobanana_pipeline_tests.chaos.round import Round, run_round
from nanobanana_pipeline_tests.servers.services import Redis


def test_kills_at_random_moments_break_no_promise(tmp_path: Path) -> None:
    """What a crash can do to money is found by crashing."""
    verdict = run_round(Round(tmp_path, kills=4, seed=7))
    assert verdict.failures == []
    assert verdict.figures["images"] > 0


def test_kills_on_postgresql_break_no_promise(tmp_path: Path, postgres_url: str) -> None:
    """The same promises, with another database's locks and clock."""
    verdict = run_round(Round(tmp_path, kills=3, seed=8, ledger_url=postgres_url))
    assert verdict.failures == []


@pytest.mark.parametrize("found", [True, False])
def test_no_kill_is_lost_where_a_service_is_missing(
    found: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A thousand kills are a thousand everywhere, and who reads the table must know which there were."""
    monkeypatch.setattr(Redis, "found", lambda: found)
    monkeypatch.setenv("NANOBANANA_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:1/postgres")
    split = kinds(1000, dagster=100, celery=100, postgres=200)
    assert sum(kills for kind in split for kills in kind.rounds()) == 1000
    said = capsys.readouterr().out
    assert "no PostgreSQL" in said
    assert ("no kills of Celery workers" in said) is (not found)
