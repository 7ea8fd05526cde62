"""The command's manners: help, exit codes, one line for whatever goes wrong, and nothing made by only looking."""

import importlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest

from nanobanana_pipeline.cli.console import clock, complain, dollars, note, say, warn
from nanobanana_pipeline.cli.progress import Pace
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline.ledger.work import NamedItem, ShardWork
from nanobanana_pipeline.orchestration.order import Order, Share, shares, shares_of
from nanobanana_pipeline_tests.e2e.command import COMMAND, ROOT, Place


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """A folder with nothing in it and nothing set."""
    return Place(tmp_path)


def test_help_is_there_at_once(here: Place) -> None:
    """Whoever asks for help waits for it: a third of a second of CPU is the most, and importing Dagster takes four."""
    spent: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert here.run("--help").code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.3


def test_every_command_explains_itself() -> None:
    """A command without a word on what it does, or an option without one, is found out by trying: with money."""

    def commands(group: click.Group) -> list[click.Command]:
        return [
            command
            for each in group.commands.values()
            for command in (commands(each) if isinstance(each, click.Group) else [each])
        ]

    for command in commands(entry_group()):
        assert command.help, command.name
        assert command.short_help, command.name
        assert all(option.help for option in command.params if isinstance(option, click.Option)), command.name


def entry_group() -> click.Group:
    """The group of all commands."""
    # Not by attribute: the package's `main` is the function of that name.
    return importlib.import_module("nanobanana_pipeline.cli.main").nanobanana


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "rnu"),
        (["run", "--limit", "0"], "--limit"),
        (["run", "--max-cost", "5$"], "--max-cost"),
        (["run", "--max-cost", "nan"], "--max-cost"),
        (["run", "--max-cost", "2000000"], "1,000,000"),
        (["reconcile", "may.csv", "--tolerance", "1,5"], "--tolerance"),
        (["query"], "SQL"),
        (["unknown", "resubmit"], "--all"),
        (["import", "nothing.csv"], "nothing.csv"),
        (["import", "nothing.csv", "--name", "../spring"], "without '/'"),
        (["simulator", "--port", "x"], "--port"),
        (["run"], "nanobanana demo"),
        (["approve", "3f2a"], "nothing was done"),
        (["reconcile", "may.csv"], "nothing was done"),
        (["export"], "nothing was done"),
        (["worker"], "NANOBANANA_API_KEY"),
    ],
)
def test_what_can_not_be_done_is_said_and_exit_1(here: Place, arguments: list[str], said: str) -> None:
    """Scripts go by the code and people by the line; click's own code for wrong usage, 2, has no meaning here."""
    ended = here.run(*arguments)
    assert ended.code == 1
    assert ended.out == ""
    assert said in ended.err.splitlines()[-1]


def test_a_worker_needs_a_dagster_that_has_workers(here: Place) -> None:
    """Started beside a Dagster of one machine, it would wait for runs that never come to it."""
    ended = here.run("worker", NANOBANANA_BASE_URL="http://127.0.0.1:9")
    assert ended.code == 1
    assert "deploy/celery/dagster.yaml" in ended.only_line


def test_a_wrong_setting_is_named_without_the_key(here: Place) -> None:
    """The message must lead to the variable, and the secret must not be in it."""
    ended = here.run("status", NANOBANANA_BUDGET_USD="lots", NANOBANANA_API_KEY="sk-secret-0123456789")
    assert ended.code == 1
    assert "NANOBANANA_BUDGET_USD" in ended.only_line
    assert "sk-secret" not in ended.err


def test_looking_makes_nothing(here: Place) -> None:
    """A person who looks in the wrong folder must not find an empty output there afterwards."""
    assert here.run("status").code == 0
    assert here.run("status", "--json").json["mode"] is None
    assert here.run("unknown", "list", "--json").json == {"unknown": [], "at_risk_usd": "0.000000"}
    assert here.run("query", "SELECT count(*) AS n FROM results", "--format", "json").json == [{"n": 0}]
    assert list(here.folder.iterdir()) == []


def test_a_spreadsheet_becomes_a_catalogue_that_is_checked(here: Place) -> None:
    """The way in for people without Parquet, up to the list of what is wrong, with nothing spent or written."""
    (here.folder / "Prompts.csv").write_text(
        "prompt_id,prompt,aspect_ratio,season\na,a red kite,16:9,spring\nb,,1:1,spring\nc,a blue kite,17:9,autumn\n"
    )
    (here.folder / "data").mkdir()
    (here.folder / "data" / "catalogue").mkdir()
    made = here.run("import", "Prompts.csv", "--name", "kites")
    assert made.code == 0, made.err
    assert here.run("import", "Prompts.csv", "--name", "kites").code == 1
    assert here.run("import", "Prompts.csv", "--name", "kites", "--replace").code == 0
    checked = here.run("validate", "--json")
    assert checked.code == 0
    (catalogue,) = checked.json["catalogues"]
    assert (catalogue["catalogue"], catalogue["prompts"], catalogue["rejected"]) == ("kites", 1, 2)
    assert catalogue["rejected_by_rule"] == {"prompt_missing": 1, "aspect_ratio_unknown": 1}
    words = here.run("validate")
    assert words.code == 0
    assert "row 3" in words.out
    assert "17:9" in words.out
    assert "warning" in words.err
    assert not (here.folder / "data" / "output").exists()
    assert not (here.folder / "data" / "demo").exists()


def test_an_output_that_can_not_be_written_is_one_line(here: Place) -> None:
    """A full or foreign disk is the user's to mend, so they are told which."""
    (here.folder / "file").touch()
    ended = here.run("repair", NANOBANANA_OUTPUT="file/output", NANOBANANA_API_KEY="k")
    assert ended.code == 1
    assert "file" in ended.only_line


def test_a_reader_that_has_seen_enough_is_no_error(here: Place) -> None:
    """`nanobanana query … | head -1` is everyday use."""
    ended = subprocess.run(
        ["bash", "-c", '"$@" | head -1', "bash", *COMMAND, "query", "FROM range(1000000)", "--format", "csv"],
        cwd=here.folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "range\n"
    assert ended.stderr == ""


DEFECT = """
import sys
from nanobanana_pipeline.cli import main
from nanobanana_pipeline.generation import intake

def check(*_, **__):
    raise ZeroDivisionError("with sk-secret-0123456789 in it")

intake.check = check
sys.exit(main(["validate"]))
"""


def test_our_own_defects_are_kept_for_us_and_one_line_for_the_user(here: Place) -> None:
    """A traceback on a terminal helps nobody there; in a file, without the key, it can be sent to us."""
    ended = subprocess.run(
        [sys.executable, "-c", DEFECT],
        cwd=here.folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "NANOBANANA_API_KEY": "sk-secret-0123456789"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert "Traceback" not in ended.stderr
    (kept,) = (here.folder / "data" / "output" / "logs").iterdir()
    assert str(kept) in ended.stderr
    assert "Traceback" in kept.read_text()
    assert "sk-secret" not in kept.read_text()


def test_money_and_time_read_as_people_write_them() -> None:
    """Half a cent must not look like nothing, and an hour not like a large number."""
    assert [dollars(micros) for micros in (0, 45_600, 1_369_200)] == ["$0.00", "$0.0456", "$1.37"]
    assert [clock(seconds) for seconds in (42.4, 187, 7500)] == ["42 s", "3:07 min", "2:05 h"]


@pytest.mark.parametrize("tell", [say, note, warn, complain])
def test_no_strangers_words_command_the_terminal(
    tell: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt's name may hold what clears the screen, or writes a line that this program never wrote."""
    tell("p\x1b[2J\x9b1A\r0042\x07 日本語")
    shown = "".join(capsys.readouterr())
    assert "日本語" in shown
    assert shown.strip().isprintable()


def test_the_pace_is_that_of_the_last_minute() -> None:
    """A slow start must not make the time left look long for hours."""
    pace = Pace()
    for second in range(0, 600, 5):
        pace.at(second, second // 10)
    for second in range(600, 700, 5):
        pace.at(second, 60 + (second - 600) * 2)
    assert pace.per_second == pytest.approx(2.0)
    assert pace.shown(60) == "2.0/s · 30 s left"


def test_a_limit_holds_over_the_shards_of_the_items_that_were_named() -> None:
    """A prompt_id may be in several catalogues: whoever asks for one picture of it must not pay for three."""
    named = [
        NamedItem("fox", "a1", "a-000000"),
        NamedItem("fox", "a2", "a-000000"),
        NamedItem("fox", "b1", "b-000000"),
        NamedItem("owl", "c1", "c-000000"),
        NamedItem("a1", "a1", "a-000000"),
    ]
    order = Order(limit=3, items=("fox", "owl", "a1"), regenerate=True)
    assert shares_of(order, named) == [Share("a-000000", 2, 2, ("a1", "a2")), Share("b-000000", 1, 1, ("b1",))]
    assert [share.limit for share in shares_of(replace(order, limit=None), named)] == [None, None, None]
    with pytest.raises(UserError, match="hare"):
        shares_of(replace(order, items=("fox", "hare")), named)


def test_a_limit_is_shared_out_in_order_and_open_work_has_its_turn() -> None:
    """The same pilot every time, and what is paid for is never left waiting for a larger limit."""
    work = [
        ShardWork("c-000000", "c", 0, 10, {ItemState.PENDING: 4, ItemState.DONE: 6}),
        ShardWork("c-000001", "c", 1, 10, {ItemState.PENDING: 8, ItemState.OPEN: 2}),
        ShardWork("c-000002", "c", 2, 10, {ItemState.PENDING: 9, ItemState.OVERDUE: 1}),
        ShardWork("c-000003", "c", 3, 10, {ItemState.PENDING: 10}),
        ShardWork("c-000004", "c", 4, 10, {ItemState.UNKNOWN: 10}),
    ]
    first = {"c-000000": 4, "c-000001": 2}
    assert shares(Order(limit=6), work, first, on_unknown="hold") == [
        Share("c-000000", 4, 4),
        Share("c-000001", 2, 4),
        Share("c-000002", 0, 1),
    ]
    # Sent again, an overdue item is among the first: counted twice, its shard would never seem to have begun them all.
    again = {"c-000000": 4, "c-000001": 2, "c-000002": 1}
    assert shares(Order(limit=7, resubmit_unknown=True), work, again, on_unknown="hold")[2] == Share("c-000002", 1, 1)
    urgent = [*work[:3], replace(work[3], priority=1)]
    first = {"c-000003": 6}
    assert shares(Order(limit=6), urgent, first, on_unknown="hold")[0] == Share("c-000003", 6, 6)
    everything = [share.shard for share in shares(Order(), work, on_unknown="resubmit")]
    assert everything == [each.shard for each in work]
