"""A few kills on every change; `make chaos` does a thousand."""

from pathlib import Path

from nanobanana_pipeline_tests.chaos.round import Round, run_round


def test_kills_at_random_moments_break_no_promise(tmp_path: Path) -> None:
    """What a crash can do to money is found by crashing."""
    verdict = run_round(Round(tmp_path, kills=4, seed=7))
    assert verdict.failures == []
    assert verdict.figures["images"] > 0


def test_kills_on_postgresql_break_no_promise(tmp_path: Path, postgres_url: str) -> None:
    """The same promises, with another database's locks and clock."""
    verdict = run_round(Round(tmp_path, kills=3, seed=8, ledger_url=postgres_url))
    assert verdict.failures == []
