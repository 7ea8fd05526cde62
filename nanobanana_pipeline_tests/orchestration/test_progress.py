"""What a running shard says of itself: enough to wait by, and never so much that it slows the run."""

from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.orchestration.metadata import Metadata
from nanobanana_pipeline.orchestration.progress import (
    Progress,
    duration,
    next_line_s,
    next_observation_s,
    progress_line,
)


def test_a_line_says_where_the_run_is_what_it_spent_and_when_it_ends() -> None:
    """It is the only thing to look at while a shard runs for an hour."""
    tally = Tally(succeeded=240, failed=5, deferred=5, in_flight=64, cost_micros=11_200_000)
    assert progress_line(tally, 1000, 60.0) == (
        "250/1,000 done, 64 in flight, 250 a minute, $11.20 spent, 5 failed, 5 deferred, about 3 min 0 s left"
    )


def test_a_line_at_the_very_beginning_promises_nothing() -> None:
    """Nothing is done yet, so nothing is known of the time left."""
    assert progress_line(Tally(in_flight=3), 10, 0.0) == "0/10 done, 3 in flight, 0 a minute, $0.00 spent"


def test_a_long_run_logs_tens_of_lines() -> None:
    """Each line is a row in Dagster's database, and 2,000 of them took 20 seconds."""

    def lines(hours: float) -> int:
        count, elapsed = 0, 0.0
        while elapsed < hours * 3600:
            elapsed = next_line_s(elapsed)
            count += 1
        return count

    assert lines(1 / 60) <= 12
    assert lines(1) <= 60
    assert lines(12) <= 200


def test_progress_is_told_every_second_and_logs_when_a_line_is_due() -> None:
    """The engine tells it every second, whatever Dagster can take."""
    logged: list[str] = []
    observed: list[Metadata] = []
    progress = Progress(logged.append, observed.append, total=10)
    progress(Tally())
    assert logged == []
    progress.began -= 6
    progress(Tally(succeeded=5))
    progress(Tally(succeeded=6))
    assert len(logged) == 1
    assert logged[0].startswith("5/10 done")
    assert observed == []
    progress.began -= 6
    progress(Tally(succeeded=6, cost_micros=500_000))
    progress(Tally(succeeded=7))
    (numbers,) = observed
    assert (numbers["done"], numbers["items"], numbers["spent_usd"]) == (6, 10, 0.5)
    assert 7 <= numbers["left_s"] <= 9


def test_a_long_run_is_observed_a_score_of_times() -> None:
    """Observations stay on the asset's page for good."""
    count, elapsed = 0, 10.0
    while elapsed < 24 * 3600:
        count, elapsed = count + 1, next_observation_s(elapsed)
    assert count <= 20


def test_durations_are_read_at_a_glance() -> None:
    """Nobody divides 7,500 seconds in their head."""
    assert [duration(s) for s in (0.4, 42, 200, 7500)] == ["0 s", "42 s", "3 min 20 s", "2 h 5 min"]


def test_a_run_goes_on_when_dagster_can_not_be_told_where_it_is() -> None:
    """Its database was away for a moment: that must not be the end of a run that pays, however it would have ended."""
    lines: list[str] = []

    def refuse(_: Metadata) -> None:
        raise OSError("the database is away")

    progress = Progress(lines.append, refuse, 10, line_due_s=1e9, observation_due_s=0.0)
    progress(Tally(succeeded=3))
    assert "the database is away" in lines[0]
