"""The commands about money and handing images out: what they say, and their exit codes, which scripts go by."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.cli import main
from nanobanana_pipeline.settings import SIMULATOR_KEY
from nanobanana_pipeline_tests.reporting.conftest import HALF_PRICE, World, rows

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A workspace with four images of two campaigns, one of them with a price of the provider's own."""
    world = World(
        tmp_path_factory.mktemp("money"), faults=[{"contains": "number 3", "fault": "usage_cost", "cost": "0.05"}]
    )
    world.catalogue("one", rows(4, campaign=["spring", None]))
    world.run()
    yield world
    world.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run(world, "plan", "--json", NANOBANANA_X=…)`: exit code, output and messages of a command on a workspace."""

    def command(world: World, *arguments: str, **environment: str) -> tuple[int, str, str]:
        settings = world.workspace.settings
        known = {
            "API_KEY": SIMULATOR_KEY,
            "BASE_URL": str(settings.base_url),
            "CATALOGUE": settings.catalogue,
            "OUTPUT": settings.output,
        }
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in {
                **{f"NANOBANANA_{name}": value for name, value in known.items()},
                **environment,
            }.items():
                patch.setenv(name, value)
            code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_a_plan_is_told_approved_and_told_again(made: World, run: Run) -> None:
    """The way of a person who has to answer for the money: look, approve, and see that it is approved."""
    made.catalogue("two", rows(40, prompt=[f"other {i}" for i in range(40)]))
    limit = {"NANOBANANA_APPROVE_ABOVE_USD": "1"}

    code, out, err = run(made, "plan", **limit)
    whole = json.loads(run(made, "plan", "--json", **limit)[1])
    few = json.loads(run(made, "plan", "--limit", "3", "--json", **limit)[1])

    assert code == 0
    assert "40 images to make (40 of 1K)" in out
    assert "P90" in out
    assert f"nanobanana approve {whole['hash']}" in err
    assert (whole["to_make"], whole["approval"]) == (40, "needed")
    assert (few["to_make"], few["approval"]) == (3, "not needed")
    assert Decimal(whole["cost_usd"]["p10"]) < Decimal(whole["cost_usd"]["p90"])
    assert run(made, "approve", whole["hash"][:5])[0] == 0
    assert json.loads(run(made, "plan", "--json", **limit)[1])["approval"] == "given"
    assert run(made, "approve", "zzz")[0] == 1
    assert run(made, "plan", "--catalogue", "three")[0] == 1


def test_a_renamed_catalogue_is_noticed_before_it_is_paid_for_again(made: World, run: Run) -> None:
    """A file that was tidied up into another name looks like so much new work."""
    made.catalogue("renamed", rows(4))

    code, _, err = run(made, "validate", "--catalogue", "renamed")
    seen = json.loads(run(made, "validate", "--json")[1])["catalogues"]

    (made.folder / "catalogue" / "renamed.parquet").unlink()
    assert code == 0
    assert "under the name one" in err
    names = {one["catalogue"]: one["seems_renamed_from"] for one in seen}
    assert (names["one"], names["renamed"]) == (None, "one")


def test_money_that_was_given_up_points_to_the_invoice(run: Run, tmp_path: Path) -> None:
    """A list of what can be decided does not help with what was."""
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", faults=[{"contains": "number 1", "fault": "answer_lost"}])
    world.catalogue("one", rows(2))
    world.run()

    assert "nanobanana unknown list" in run(world, "status")[1]
    assert run(world, "unknown", "abandon", "--all")[0] == 0
    _, out, _ = run(world, "status")
    stands = json.loads(run(world, "status", "--json")[1])

    world.close()
    assert "unknown list" not in out
    assert "nanobanana reconcile" in out
    assert (stands["undecided_usd"], stands["at_risk_usd"] > "0.05") == ("0.000000", True)


def test_an_invoice_that_drifts_is_exit_3_until_it_is_corrected(made: World, run: Run, tmp_path: Path) -> None:
    """A nightly script reconciles; it must notice by the code, and a person by the lines."""
    billed = [(row["task_id"], row["cost_usd"]) for row in made.provider.book if row["event"] == "billed"]
    path = tmp_path / "may.csv"
    with path.open("w") as file:
        csv.writer(file).writerows([("Vorgang", "amount"), *billed[:-1], (billed[-1][0], "0.99")])
    mapping = tmp_path / "mapping.toml"
    mapping.write_text("[columns]\ntask_id = 'Vorgang'\n")
    invoice = ("reconcile", "may.csv", "--mapping", "mapping.toml")

    code, out, err = run(made, *invoice)
    assert code == 3
    assert "amount differs" in out
    assert billed[-1][0] in out
    assert re.search(r"the invoice has \$0\.\d+ more", out)
    assert "FROM reconciliation" in err
    assert run(made, *invoice, "--tolerance", "1")[0] == 0
    corrected: dict[str, Any] = json.loads(run(made, *invoice, "--correct", "--json")[1])
    assert (corrected["corrected"], corrected["ok"]) == (1, True)
    assert run(made, *invoice)[0] == 0
    (tmp_path / "free.csv").write_text(f"id,amount\n{billed[0][0]},0\n")
    assert re.search(r"the invoice has \$[\d.]+ less", run(made, "reconcile", "free.csv")[1])
    code, out, err = run(made, "reconcile", "june.csv")
    assert (code, out) == (1, "")
    assert "june.csv" in err
    assert run(made, *invoice, "--tolerance", "-1")[0] == 1


def test_a_second_charge_is_one_line_and_exit_3_and_an_overlap_is_a_line(run: Run, tmp_path: Path) -> None:
    """Who pays invoices looks at what is said, and a nightly script at the code."""
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world")
    world.catalogue("one", rows(2))
    world.run()
    billed = [(row["task_id"], row["cost_usd"]) for row in world.provider.book if row["event"] == "billed"]
    total = sum(Decimal(cost) for _, cost in billed)
    for name, day in (("november", "2026-11-20"), ("copy", "2026-11-20"), ("december", "2026-12-03")):
        text = "\n".join(["id,amount,day", *(f"{task},{cost},{day}" for task, cost in billed)])
        (tmp_path / f"{name}.csv").write_text(text)

    assert "invoice" in run(world, "reconcile", "november.csv")[1]
    code, out, _ = run(world, "reconcile", "copy.csv")
    assert code == 0
    assert f"listed elsewhere too: 2 tasks, ${total:.4f}, on november.csv" in out
    code, out, _ = run(world, "reconcile", "december.csv")
    assert code == 3
    assert f"charged again: 2 tasks, ${total:.4f}, first on copy.csv" in out
    assert f"the invoice has ${total:.4f} more" in out
    assert "matched" not in out
    told = json.loads(run(world, "reconcile", "december.csv", "--json")[1])
    assert told["charged_again"] == {"tasks": 2, "usd": f"{total:.6f}", "invoices": ["copy.csv"]}
    world.close()


def test_an_invoice_that_names_no_tasks_says_why_it_corrected_nothing(made: World, run: Run, tmp_path: Path) -> None:
    """--correct was passed over in silence: whoever paid the invoice took the books for corrected."""
    (tmp_path / "days.csv").write_text("date,amount\n2026-01-02,1.00\n")
    (tmp_path / "blank.csv").write_text("id,amount\n,1.00\n")
    for name in ("days.csv", "blank.csv"):
        code, out, err = run(made, "reconcile", name, "--correct")
        assert (code, "corrected" in out) == (3, False)
        (line,) = (line for line in err.splitlines() if "nothing was corrected" in line)
        assert f"{name} names no task" in line
        assert "task_id under [columns]" in line
        assert "nothing was corrected" not in run(made, "reconcile", name)[2]
    code, out, err = run(made, "reconcile", "days.csv", "--correct", "--json")
    assert (code, json.loads(out)["corrected"], "nothing was corrected" in err) == (3, 0, True)

    spent = Counter[str]()
    for row in made.workspace.tables.read("attempts").to_pylist():
        spent[row["created_at"].date().isoformat()] += row["cost_usd"]
    (tmp_path / "agrees.csv").write_text("\n".join(["date,amount", *(f"{day},{usd}" for day, usd in spent.items())]))
    code, _, err = run(made, "reconcile", "agrees.csv", "--correct")
    assert (code, "nothing was corrected" in err) == (0, False)


def test_images_are_handed_out_and_never_over_others(made: World, run: Run, tmp_path: Path) -> None:
    """What is exported twice into one place is a mixture that nobody can tell apart."""
    code, out, _ = run(made, "export", "--campaign", "spring")
    assert code == 0
    assert out.startswith("2 images, ")
    assert len(list((tmp_path / "images" / "one").iterdir())) == 2
    code, _, err = run(made, "export", "--campaign", "spring")
    assert code == 1
    assert "is there already" in err
    assert run(made, "export", "--format", "csv", "--to", "list.csv")[0] == 0
    assert (tmp_path / "list.csv").read_text().count("\n") == 5
    assert "no image of campaign autumn" in run(made, "export", "--campaign", "autumn", "--to", "autumn")[2]


@pytest.mark.parametrize(("fmt", "length"), [("folder", 300), ("zip", 300), ("csv", 250)])
def test_a_name_that_is_too_long_is_one_line(made: World, run: Run, fmt: str, length: int) -> None:
    """It was called a defect of ours, with a report to send in; also where only the file on the way was too long."""
    code, out, err = run(made, "export", "--format", fmt, "--to", "n" * length)
    assert (code, out) == (1, "")
    assert "File name too long" in err
    assert "give a shorter name" in err
    assert "defect" not in err


def test_a_damaged_image_is_named_and_exit_3(made: World, run: Run) -> None:
    """A folder with an image too few looks like a whole one."""
    path = made.workspace.tables.read("images").column("path")[0].as_py()
    whole = made.workspace.images.read(path)
    made.workspace.images.write(path, b"not it")

    code, out, err = run(made, "export", "--format", "zip")

    made.workspace.images.write(path, whole)
    assert code == 3
    assert path in out
    assert "damaged: 1 image file" in err


def test_late_prices_are_restated_by_a_command(run: Run, tmp_path: Path) -> None:
    """And a second time changes nothing, so that it can be run when in doubt."""
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world")
    world.catalogue("one", rows(2))
    world.run()
    (tmp_path / "prices.toml").write_text(HALF_PRICE)

    code, out, _ = run(world, "reprice", NANOBANANA_PRICES="prices.toml")

    assert code == 0
    assert out.startswith("2 attempts restated: ")
    assert json.loads(run(world, "reprice", "--json", NANOBANANA_PRICES="prices.toml")[1])["attempts"] == 0
    world.close()
