"""Exports: the right images, byte for byte, under names that a person can read."""

import csv
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.reporting.export import FORMATS, Exported, export
from nanobanana_pipeline_tests.reporting.conftest import World, rows
from nanobanana_pipeline_tests.servers.object_store import Fault, ObjectStoreProcess

BEAR = "Ein Bär in Zürich, painted in oil on a very long and narrow piece of old wood"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two catalogues, one with several images a task, with failures and an edit."""
    world = World(
        tmp_path_factory.mktemp("export"),
        faults=[
            {"contains": "number 3", "fault": "refused_400"},
            {"contains": "number 2", "fault": "several_images", "images": 2},
        ],
    )
    things = rows(5, campaign=["=cmd()", "spring"], resolution="0.5K")
    world.catalogue("things", things)
    world.catalogue(
        "more things", [{"prompt_id": "../up", "prompt": BEAR, "samples": 2}, {"prompt_id": "猫", "prompt": "日本"}]
    )
    world.run()
    things[0]["prompt"] = "changed"
    world.catalogue("things", things)
    world.run()
    yield world
    world.close()


def test_a_folder_holds_every_current_image(made: World, tmp_path: Path) -> None:
    """No failed item, no superseded image, no name that leads out of the folder."""
    report = export(made.workspace, tmp_path / "out")

    listed = _manifest(tmp_path / "out" / "manifest.csv")
    files = sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*") if path.is_file()
    )
    assert sorted([*(row["file"] for row in listed), "manifest.csv"]) == files
    assert (report.images, report.damaged) == (8, [])
    assert {row["prompt_id"] for row in listed} == {"p000", "p001", "p002", "p004", "../up", "猫"}
    names = [Path(row["file"]).name for row in listed]
    assert "p000-1-changed" in {name.partition(".")[0] for name in names}
    assert any("-2-ein-bar-in-zurich-painted-in-oil-on-a-very-long." in name for name in names)
    assert not any(".." in file for file in files)


def test_files_are_byte_for_byte_what_was_stored(made: World, tmp_path: Path) -> None:
    """Signed provenance holds only while no byte changes."""
    export(made.workspace, tmp_path / "out")
    export(made.workspace, tmp_path / "out.zip", "zip")
    export(made.workspace, tmp_path / "out.parquet", "parquet")

    archive = zipfile.ZipFile(tmp_path / "out.zip")
    table = {row["file"]: row["image"]["bytes"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    for row in _manifest(tmp_path / "out" / "manifest.csv"):
        stored = Path(made.workspace.output, row["source_path"]).read_bytes()
        assert (tmp_path / "out" / row["file"]).read_bytes() == stored
        assert archive.read(row["file"]) == stored
        assert table[row["file"]] == stored
        assert hashlib.sha256(stored).hexdigest() == row["sha256"]
    archive.close()


def test_every_format_lists_the_same(made: World, tmp_path: Path) -> None:
    """Whoever changes the format must not lose a column on the way."""
    for fmt in FORMATS:
        export(made.workspace, tmp_path / fmt, fmt)

    folder = _manifest(tmp_path / "folder" / "manifest.csv")
    with zipfile.ZipFile(tmp_path / "zip") as archive:
        assert archive.read("manifest.csv") == (tmp_path / "folder" / "manifest.csv").read_bytes()
    alone = _manifest(tmp_path / "csv")
    assert [row["file"] for row in alone] == [row["source_path"] for row in folder]
    frame = pd.read_parquet(tmp_path / "parquet")
    assert list(frame.columns) == ["image", *Exported._fields]
    assert list(frame["file"]) == [row["file"] for row in folder]
    assert [str(cost) for cost in frame["cost_usd"]] == [row["cost_usd"] for row in folder]


def test_the_costs_of_a_manifest_add_up(made: World, tmp_path: Path) -> None:
    """Each of an item's images had all that the item cost: whoever summed the column paid twice on paper."""
    export(made.workspace, tmp_path / "list.csv", "csv")

    listed = _manifest(tmp_path / "list.csv")
    shown = {(row["catalogue"], row["prompt_id"], row["sample"]) for row in listed}
    assert len(shown) < len(listed), "no item has several images"
    results = made.workspace.tables.read("results").to_pylist()
    cost = {(row["catalogue"], row["prompt_id"], str(row["sample"])): row["cost_usd"] for row in results}
    assert sum(Decimal(row["cost_usd"]) for row in listed) == sum(cost[item] for item in shown)


def test_a_spreadsheet_runs_nothing_of_the_manifest(made: World, tmp_path: Path) -> None:
    """A campaign named like a formula is a formula to whoever opens the list."""
    export(made.workspace, tmp_path / "list.csv", "csv", campaign="=cmd()")

    listed = _manifest(tmp_path / "list.csv")
    assert {row["campaign"] for row in listed} == {"'=cmd()"}
    assert len(listed) == 4


def test_the_same_images_give_the_same_archive(made: World, tmp_path: Path) -> None:
    """An archive that differs each day is uploaded each day."""
    export(made.workspace, tmp_path / "a.zip", "zip")
    export(made.workspace, tmp_path / "b.zip", "zip")

    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_part_can_be_exported(made: World, tmp_path: Path) -> None:
    """By catalogue, by campaign; a slip in the name is an error and not an empty folder."""
    assert export(made.workspace, tmp_path / "a", catalogue="more things").images == 3
    assert export(made.workspace, tmp_path / "b", campaign="spring").images == 1
    with pytest.raises(UserError, match="there is no catalogue nothing"):
        export(made.workspace, tmp_path / "c", catalogue="nothing")
    assert not (tmp_path / "c").exists()


def test_no_file_takes_the_place_of_another(world: Callable[..., World], tmp_path: Path) -> None:
    """Prompt ids are any text: two that read alike, or differ in capitals only, are two files on any computer."""
    small = world()
    alike = [("a", "1 x"), ("A", "1 x"), ("a-1", "x"), ("a-1-1", "x")]
    small.catalogue("one", [{"prompt_id": name, "prompt": prompt, "samples": 2} for name, prompt in alike])
    small.run()

    export(small.workspace, tmp_path / "out")

    listed = _manifest(tmp_path / "out" / "manifest.csv")
    assert len({row["file"].lower() for row in listed}) == len(listed) == 8


def test_nothing_that_is_there_is_overwritten(made: World, tmp_path: Path) -> None:
    """A folder of last week's favourites is easily named by mistake."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "favourite.png").write_text("dear to me")
    (tmp_path / "list.csv").write_text("dear, too")

    for fmt, name in (("folder", "mine"), ("csv", "list.csv"), ("zip", "list.csv")):
        with pytest.raises(UserError, match="is there already"):
            export(made.workspace, tmp_path / name, fmt)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="there is no folder"):
        export(made.workspace, tmp_path / "no" / "such")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "mine"]


def test_a_damaged_image_is_left_out_and_told(world: Callable[..., World], tmp_path: Path) -> None:
    """Half an image in a delivery is worse than a missing one, and a missing one must be known."""
    small = world()
    small.catalogue("one", rows(3, resolution="0.5K"))
    small.run()
    images = sorted(Path(small.workspace.output, "images").rglob("*.*"))
    files = [path for path in images if path.is_file()]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])

    report = export(small.workspace, tmp_path / "out")

    assert report.images == 1
    assert len(report.damaged) == 2


def test_a_store_that_is_out_of_reach_is_no_damage(
    world: Callable[..., World], bucket: str, object_store: ObjectStoreProcess, tmp_path: Path
) -> None:
    """Every image was left out as damaged, to be restored from a backup, while the store was only refusing the key."""
    made = world()
    made.catalogue("one", rows(1))
    made.run()
    with made.elsewhere(made.workspace.settings.model_copy(update={"output": bucket})) as workspace:
        object_store.let_fail(Fault(what="denied", method="GET", path="images", times=100))
        with pytest.raises(UserError, match="the object store failed at"):
            export(workspace, tmp_path / "out")
        object_store.let_fail()
        assert len(export(workspace, tmp_path / "after").damaged) == 1


def _manifest(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))
