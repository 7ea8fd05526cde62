"""What Prometheus is given, read back by its own parser and held against the ledger."""

from collections.abc import Callable, Iterator

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nanobanana_pipeline.reporting.metrics import registry_of
from nanobanana_pipeline_tests.reporting.conftest import World, rows

FAULTS = (
    {"contains": "number 1", "fault": "refused_400_moderation"},
    {"contains": "number 2", "fault": "answer_lost"},
    {"contains": "number 3", "fault": "rate_limited_429", "times": 1},
)


def samples(made: World) -> Iterator[tuple[str, float]]:
    """Each sample as `name{label="value"}`, and its value."""
    text = generate_latest(registry_of(made.workspace.ledger, made.workspace.settings)).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            yield f"{sample.name}{{{labels}}}", sample.value


def test_the_figures_are_those_of_the_ledger(world: Callable[..., World], ledger_url: str) -> None:
    """A dashboard that says otherwise than the books is worse than none; and one of an empty ledger must be there."""
    made = world(faults=FAULTS, ledger_url=ledger_url)
    assert dict(samples(made))['nanobanana_attempts_open{state="unknown"}'] == 0
    made.catalogue("plain", rows(6))
    made.run()

    found = dict(samples(made))

    held = made.workspace.ledger.counters()["catalogue:plain"]
    assert found['nanobanana_items{catalogue="plain",status="succeeded"}'] == 4
    assert found['nanobanana_items{catalogue="plain",status="unknown"}'] == 1
    assert found['nanobanana_attempts_open{state="unknown"}'] == 1
    assert found['nanobanana_attempts_ended_total{error_kind="",state="stored"}'] == 4
    assert found['nanobanana_attempts_ended_total{error_kind="content_policy",state="refused"}'] == 1
    assert found["nanobanana_submits_total{}"] == 7
    assert found["nanobanana_cost_usd_total{}"] == held.spent / 1_000_000
    assert found['nanobanana_budget_usd{account="spent",scope="day"}'] == held.spent / 1_000_000
    assert found["nanobanana_at_risk_usd{}"] == held.at_risk / 1_000_000 > 0
    assert found['nanobanana_budget_cap_usd{scope="day"}'] == 100
    assert found['nanobanana_throttle_limit{account="default"}'] > 0
    assert found['nanobanana_task_duration_seconds_count{resolution="1K"}'] == 4
    assert found['nanobanana_task_duration_seconds_bucket{le="+Inf",resolution="1K"}'] == 4
    assert found['nanobanana_workers{alive="true"}'] == 0
