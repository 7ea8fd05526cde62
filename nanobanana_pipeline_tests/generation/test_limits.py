"""What the provider can be sent: its limits are used to the full, kept when they are known, and learnt when not."""

import pytest

from nanobanana_pipeline.generation.limits import ProviderGate, backoff_s
from nanobanana_pipeline.ledger.entries import InFlight
from nanobanana_pipeline_tests.benchmarks.limits import Allowance, mean_latency_s, simulated


def _gate(most: int = 1000, rate: int | None = None) -> ProviderGate:
    return ProviderGate("account", max_in_flight=most, requests_per_minute=rate)


@pytest.mark.parametrize("allowed", [16, 64])
def test_a_limit_on_open_tasks_is_found_and_used(allowed: int) -> None:
    """Nobody is told this limit; every slot left empty is time lost, and every refusal a request for nothing."""
    use = simulated(Allowance(in_flight=allowed), _gate(), measured_s=300)
    assert use.rate >= 0.9 * allowed / mean_latency_s()
    assert use.refused < 1


def test_known_requests_a_minute_are_used_and_never_exceeded() -> None:
    """A refused submit is a second lost: with the limit known there must be none."""
    use = simulated(Allowance(a_minute=300), _gate(rate=300), measured_s=300)
    assert use.rate >= 0.95 * 5
    assert use.refused == 0


def test_unknown_requests_a_minute_cost_few_refusals() -> None:
    """A storm of 429 is as impolite as it is useless."""
    use = simulated(Allowance(a_minute=300, says_when=False), _gate(), measured_s=300)
    assert use.rate >= 0.8 * 5
    assert use.refused < 1


def test_nothing_goes_before_the_time_that_the_provider_named() -> None:
    """Who comes earlier than told is refused again, and may be told to stay away for longer."""
    gate = _gate(64)
    state = gate.pushed_back(None, 1_000_000, 20.0)
    granted, wait_s = gate.grant(state, 1_005_000, InFlight(0), 10)
    assert granted == 0
    assert wait_s >= 15.0
    assert gate.grant(state, 1_020_000, InFlight(0), 10)[0] > 0


def test_after_a_push_back_nobody_comes_back_in_the_same_moment() -> None:
    """Ten workers that wait for exactly as long as they were told are refused together once more."""
    gate = _gate(64)
    gate.grant(None, 999_000, InFlight(64), 10)
    state = gate.pushed_back(None, 1_000_000, 20.0)
    waits = [gate.grant(state, 1_000_000, InFlight(0), 10)[1] for _ in range(50)]
    assert min(waits) >= 20.0
    assert max(waits) - min(waits) > 2.0
    # And of those who may go again a few try first.
    assert gate.grant(state, 1_025_000, InFlight(0), 64)[0] == 4
    own = [backoff_s(3) for _ in range(50)]
    assert max(own) - min(own) > 0.5


def test_a_clock_that_is_put_back_holds_nobody_up_for_longer_than_a_provider_may() -> None:
    """The machine's clock was a day ahead when the provider asked for a pause, and was put right in it."""
    gate, day_ms, hour_ms = _gate(64), 86_400_000, 3_600_000
    state: str | None = gate.pushed_back(None, day_ms, 20.0)
    assert gate.grant(state, 0, InFlight(0), 10)[0] == 0
    state = gate.take(state, 0, 0)
    assert gate.grant(state, hour_ms, InFlight(0), 10)[0] > 0


def test_a_large_limit_is_approached_in_steps() -> None:
    """Thousands of submits at a provider that takes twenty would all be refused at once."""
    gate = _gate(5000)
    assert gate.grant(None, 1_000_000, InFlight(0), 5000)[0] == 64
    state = gate.take(None, 1_000_000, 64)
    for _ in range(64):
        gate.accepted()
    state = gate.take(state, 1_000_200, 0)
    assert gate.grant(state, 1_000_200, InFlight(64), 5000)[0] == 64


def test_who_has_much_to_send_leaves_room_for_who_waits() -> None:
    """A run's own ending tasks tell it of room before anyone else asks: a large run would keep a small one out."""
    large = _gate(12)
    assert large.grant(None, 1_000_000, InFlight(8, mine=8), 20)[0] == 4
    assert large.grant(None, 1_000_000, InFlight(8, mine=8, others_waiting=1), 20)[0] == 0
    assert _gate(12).grant(None, 1_000_000, InFlight(8, mine=0, others_waiting=1), 20)[0] == 4
    # No place stays empty for it, and with more runs than places each still gets one when it can.
    assert _gate(5).grant(None, 1_000_000, InFlight(2, mine=2, others_waiting=1), 20)[0] == 1
    assert _gate(1).grant(None, 1_000_000, InFlight(0, mine=0, others_waiting=7), 20)[0] == 1


def test_a_rate_is_shared_with_who_waits() -> None:
    """The first to ask would take a whole second's submits."""
    alone, beside = _gate(100, rate=600), _gate(100, rate=600)
    state = alone.take(None, 1_000_000, 0)
    assert alone.grant(state, 1_001_000, InFlight(0), 50)[0] in {9, 10}
    assert beside.grant(state, 1_001_000, InFlight(0, others_waiting=1), 50)[0] == 5
