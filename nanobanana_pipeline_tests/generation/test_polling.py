"""When to ask next: the rule learns, forgets, and stands whatever latencies there are."""

import random

import pytest

from nanobanana_pipeline.generation.polling import Latencies
from nanobanana_pipeline_tests.benchmarks.polling import compared


def _spread(median_s: float, sigma: float, count: int = 200) -> list[float]:
    draw = random.Random(5)
    return [median_s * draw.lognormvariate(0, sigma) for _ in range(count)]


def test_the_first_question_waits_for_the_quickest_tasks_then_the_gap_is_fixed() -> None:
    """Asking before anything can have ended only costs requests."""
    known = Latencies(_spread(10, 0.25))
    assert 7 < known.first_poll_s() < 9
    assert known.next_poll_s(8) == known.next_poll_s(12) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("now_s", [2.0, 50.0])
def test_a_change_of_speed_is_learnt_in_either_direction(now_s: float) -> None:
    """A provider that got faster or slower must not be asked by yesterday's clock for ever."""
    known = Latencies(_spread(10, 0.25))
    for _ in range(400):
        # What a worker sees: tasks that ended before the first question count for less than its time.
        first_s = known.first_poll_s()
        known.observe(now_s if now_s > first_s else first_s * 0.8)
    assert known.first_poll_s() == pytest.approx(now_s, rel=0.5)


def test_before_anything_is_learnt_a_few_tasks_are_asked_about_early() -> None:
    """With a thousand tasks in the air, each asked about four times a second, the first minute would cost most."""
    known = Latencies()
    first = [known.first_poll_s(scout=known.send_scout()) for _ in range(1000)]
    assert 20 <= sum(wait_s < 0.5 for wait_s in first) < 50
    assert max(first) <= 5.0
    assert not any(Latencies(_spread(10, 0.25)).send_scout() for _ in range(100))


def test_wide_latencies_are_asked_about_at_once_and_ever_rarer() -> None:
    """Where the quickest take seconds and the slowest minutes, a first wait would only add lag."""
    known = Latencies(_spread(10, 1.2))
    assert known.first_poll_s() == known.gap_s
    assert known.gap_s == known.next_poll_s(5) < known.next_poll_s(60) < known.next_poll_s(600) <= 30


@pytest.mark.parametrize("latencies", [[], [0.0] * 200, [1e-9] * 200, [0.0] * 150 + [900.0] * 50])
def test_odd_histories_give_sensible_waits(latencies: list[float]) -> None:
    """No history, and one of tasks that ended at once, must neither fail nor make a busy loop."""
    known = Latencies(latencies)
    assert 0.1 <= known.first_poll_s() <= 10
    assert all(0.1 <= known.next_poll_s(age_s) <= 30 for age_s in (0.0, 0.1, 5.0, 5000.0))


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.2])
def test_few_polls_more_than_the_best_there_could_be(sigma: float) -> None:
    """At equal lag, within a tenth of one who knew the latencies beforehand, and never worse than a fixed gap."""
    found = compared(sigma)
    assert found["learnt"].lag_s == pytest.approx(found["optimum"].lag_s, rel=0.02)
    assert found["learnt"].polls <= 1.1 * found["optimum"].polls
    assert found["learnt"].polls <= found["fixed"].polls
