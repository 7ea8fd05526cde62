"""Forecasts: right as often as they say, the same each time, and sensible where little is known."""

import pytest

from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.reporting.forecast import Pace, Work, forecast
from nanobanana_pipeline.reporting.history import Experience, History, Kind
from nanobanana_pipeline_tests.reporting.backtest import EXPECTED_MICROS, KIND, Case, coverage


@pytest.mark.slow
def test_eight_of_ten_runs_cost_and_take_what_was_forecast() -> None:
    """An 80 % interval that holds in 60 % of cases is a lie, and one that holds in 95 % tells too little."""
    found = coverage(Case(seen=300, items=400, in_flight=32))

    assert 0.77 <= found.cost <= 0.83
    assert 0.77 <= found.duration <= 0.83


def test_the_same_question_has_the_same_answer() -> None:
    """A plan that is shown and then approved must not show other figures the second time."""
    work = {KIND: Work(10, 10 * EXPECTED_MICROS)}
    first, second, other = (forecast(load_spec(), work, History(), Pace(64, None), seed=seed) for seed in (1, 1, 2))

    assert first == second
    assert first != other


def test_no_work_costs_nothing() -> None:
    """An up-to-date catalogue is the usual case."""
    found = forecast(load_spec(), {}, History(), Pace(64, None))

    assert (found.cost, found.duration_s) == ((0, 0, 0), (0, 0, 0))


def test_a_rate_limit_stretches_the_duration() -> None:
    """At 60 a minute, 600 submits take ten minutes however quick the tasks are."""
    work = {KIND: Work(600, 600 * EXPECTED_MICROS)}
    history = History([Experience(KIND, 1.0, 1)] * 100, {"1K": [2.0, 3.0] * 50})

    quick, limited = (forecast(load_spec(), work, history, Pace(64, limit)) for limit in (None, 60))

    assert quick.duration_s.p90 < 60
    assert 600 < limited.duration_s.p50 < 610


def test_one_resolution_s_experience_speaks_for_another() -> None:
    """A reseller that is a third cheaper is so at every size; what was never tried must not fall back to the list."""
    history = History([Experience(KIND, 0.667, 1)] * 200, {})
    work = {Kind("4K", 0, 0): Work(100, 100 * 152_000.0)}

    assert forecast(load_spec(), work, history, Pace(64, None)).cost.p50 == pytest.approx(0.667 * 15_200_000, rel=0.01)


def test_dear_kinds_are_not_mixed_with_cheap_ones() -> None:
    """Requests with input images may cost more than the spec expects; with enough of them seen, that is what counts."""
    editing = Kind("1K", 3, 0)
    history = History([Experience(KIND, 1.0, 1)] * 100 + [Experience(editing, 2.0, 1)] * 100, {})
    work = {editing: Work(10, 10 * EXPECTED_MICROS)}

    assert forecast(load_spec(), work, history, Pace(64, None)).cost.p50 == pytest.approx(20 * EXPECTED_MICROS)
