"""When faults strike: the conditions of rules, and what a wrong script is told."""

from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.simulator.faults import FaultScript, Strike, load_faults, strike_from_row
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.simulator.conftest import Talk, send


def struck(script: FaultScript, prompts: list[str]) -> list[bool]:
    """For each prompt, whether a poll of it is struck."""
    return [script.strike("poll", prompt) is not None for prompt in prompts]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({}, [True, True, True]),
        ({"prompt": "a fox"}, [True, False, False]),
        ({"contains": "fox"}, [True, True, False]),
        ({"regex": "^a (fox|cat)"}, [True, True, True]),
        ({"regex": "fox$"}, [True, False, False]),
        ({"contains": "fox", "regex": "snow"}, [False, True, False]),
        ({"rate": 1}, [True, True, True]),
        ({"rate": 0}, [False, False, False]),
        ({"buckets": 1, "bucket": 0}, [True, True, True]),
        ({"times": 0}, [False, False, False]),
    ],
)
def test_conditions_are_all_to_hold(condition: dict[str, Any], expected: list[bool]) -> None:
    """A test that means one prompt must not hit another."""
    script = FaultScript([{"fault": "poll_500", **condition}])

    assert struck(script, ["a fox", "a fox in the snow", "a cat"]) == expected


def test_times_counts_each_prompt_for_itself() -> None:
    """To strike the first two polls of each is what chaos tests need."""
    script = FaultScript([{"fault": "poll_500", "times": 2}])

    assert struck(script, ["a", "a", "a", "b", "b", "b"]) == [True, True, False, True, True, False]


def test_the_first_rule_that_holds_strikes_and_then_gives_way() -> None:
    """Scripts read as a sequence: 429 once, then 500 once, then all is well."""
    script = FaultScript([{"fault": "poll_429", "times": 1}, {"fault": "poll_500", "times": 1}])
    faults = [script.strike("poll", "a") for _ in range(3)]

    assert [fault and fault.fault for fault in faults] == ["poll_429", "poll_500", None]


def test_task_faults_strike_together() -> None:
    """They shape one outcome between them."""
    script = FaultScript([{"fault": "flat_output"}, {"fault": "poll_500"}, {"fault": "usage_absent"}])

    assert [strike.fault for strike in script.strikes("task", "a")] == ["flat_output", "usage_absent"]


def test_a_rate_is_kept_and_can_be_had_again() -> None:
    """5 % means 5 %, the same 5 % with the same seed, and fresh luck at every try."""
    prompts = [f"prompt {number}" for number in range(2_000)]
    rule = {"fault": "poll_500", "rate": 0.05}
    first, again, other = (struck(FaultScript([{**rule, "seed": seed}]), prompts) for seed in (1, 1, 2))

    assert 60 < sum(first) < 140
    assert first == again
    assert first != other
    script = FaultScript([{"fault": "poll_500", "rate": 0.5}])
    assert 0 < sum(struck(script, ["one prompt"] * 50)) < 50


def test_buckets_part_the_prompts() -> None:
    """Every prompt is in exactly one, so that scripts can give each tenth its own trouble."""
    prompts = [f"prompt {number}" for number in range(300)]
    parts = [
        struck(FaultScript([{"fault": "poll_500", "bucket": number, "buckets": 3}]), prompts) for number in range(3)
    ]

    assert [sum(column) for column in zip(*parts, strict=True)] == [1] * 300
    assert all(sum(part) > 60 for part in parts)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "rule 1 has no known fault"),
        ({"fault": "poll_501"}, "'poll_501'.*choose one of"),
        ({"fault": "poll_500", "retries": 1}, "does not know 'retries'.*times"),
        ({"fault": "poll_429", "retry_after": 1.5}, "retry_after must be int or str"),
        ({"fault": "gateway_504", "accepted": "yes"}, "accepted must be bool"),
        ({"fault": "slow_task", "seconds": True}, "seconds must be int or float"),
        ({"fault": "no_output", "how": "maybe"}, "absent or empty or empty_content"),
        ({"fault": "poll_500", "regex": "("}, "regex '\\(' is wrong"),
        ({"fault": "poll_500", "times": "twice"}, "times must be int"),
        ({"fault": "poll_500", "bucket": 0, "buckets": 0}, "at least 1"),
    ],
)
def test_a_wrong_rule_is_named(rule: dict[str, Any], message: str) -> None:
    """A fault that never strikes for a misspelling makes a test pass for nothing."""
    with pytest.raises(UserError, match=message):
        FaultScript([rule])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("script.toml", '[[rules]]\nfault = "poll_429"\nretry_after = 2\ntimes = 1\n'),
        ("script.json", '{"rules": [{"fault": "poll_429", "retry_after": 2, "times": 1}]}'),
        ("list.json", '[{"fault": "poll_429", "retry_after": 2, "times": 1}]'),
    ],
)
def test_scripts_are_toml_or_json(tmp_path: Path, name: str, text: str) -> None:
    """One rule, three ways to write it."""
    path = tmp_path / name
    path.write_text(text)

    assert load_faults(path).strike("poll", "a") == Strike("poll_429", {"retry_after": 2})


@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", "= 1"), ("a.json", "{"), ("a.json", "3"), ("a.toml", "rules = 3")]
)
def test_a_script_that_is_none_is_named(tmp_path: Path, name: str, text: str) -> None:
    """With its path, as there may be several."""
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(UserError, match=name):
        load_faults(path)


def test_an_empty_script_has_no_rules(tmp_path: Path) -> None:
    """The way to say: nothing goes wrong."""
    path = tmp_path / "empty.toml"
    path.write_text("")

    assert load_faults(path).rules == []


def test_strikes_are_kept_in_the_book_whole() -> None:
    """A restarted simulator reads them back."""
    strike = Strike("failed", {"shape": "seed", "code": 1, "message": "x"})

    assert strike_from_row(strike.as_row()) == strike


def test_a_script_file_is_in_force_from_the_start(tmp_path: Path) -> None:
    """The command line's way in."""
    path = tmp_path / "script.toml"
    path.write_text('[[rules]]\nfault = "balance_403"\n')
    with SimulatorProcess(faults=path) as simulator:
        assert Talk(simulator).submit("a picture").status == 403


def test_scripts_are_replaced_and_shown_at_run_time(talk: Talk, prompt: str) -> None:
    """A test's way in; a wrong script leaves the old one in force."""
    url = f"{talk.simulator.base_url}/simulator/faults"
    rules = [{"fault": "balance_403"}]
    talk.simulator.set_faults(rules)
    with pytest.raises(UserError, match="no known fault"):
        talk.simulator.set_faults([{"fault": "nonsense"}])
    shown = send("GET", url).json
    toml = b'[[rules]]\nfault = "error_500"\n'
    replaced = send("POST", url, headers={"Content-Type": "application/toml"}, body=toml)

    assert shown == {"rules": rules}
    assert replaced.json == {"rules": [{"fault": "error_500"}]}
    assert talk.submit(prompt).status == 500
