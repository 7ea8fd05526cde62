"""Image files: where they go, and that they are whole and there to stay."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanobanana_pipeline.storage import durable
from nanobanana_pipeline.storage.images import ImageStore

SHA = "0123456789abcdef" * 4
NASTY = [
    "..",
    ".",
    "/etc/passwd",
    "../../x",
    "a/b",
    "a\\b",
    "C:\\x",
    "nul\0byte",
    "",
    " ",
    "-rf",
    "é" * 300,
    "x" * 5000,
]


def path_of(prompt_id: str, catalogue: str = "c", shard: str = "c-000001") -> str:
    """Where an image of this prompt goes."""
    return ImageStore("out").path_for(catalogue, shard, prompt_id, 1, SHA, "png")


def test_a_plain_path_reads_as_the_design_says() -> None:
    """Scripts find images by these paths."""
    store = ImageStore("out")
    assert store.path_for("cats", "cats-000001", "tabby", 2, SHA, "jpg") == (
        "images/cats/cats-000001/tabby-2-0123456789ab.jpg"
    )
    assert store.path_for("cats", "cats-000001", "tabby", 2, SHA, "jpg", n=3) == (
        "images/cats/cats-000001/tabby-2-3-0123456789ab.jpg"
    )


@pytest.mark.parametrize("name", NASTY)
def test_no_name_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    """Prompt ids come from a catalogue that anyone may have written."""
    store = ImageStore(tmp_path / "out")
    relative = store.path_for(name, name, name, 1, SHA, "png")
    assert len(Path(relative).parts) == 4
    assert all(len(part.encode()) < 256 for part in Path(relative).parts)
    store.write(relative, b"x")
    assert (tmp_path / "out" / relative).resolve().is_relative_to((tmp_path / "out" / "images").resolve())


@given(st.lists(st.text(max_size=20), min_size=2, max_size=20, unique=True))
@settings(max_examples=50)
def test_two_prompts_never_share_a_path(names: list[str]) -> None:
    """Two ids that look alike once made safe must not overwrite each other's image, even with equal bytes."""
    assert len({path_of(name) for name in names}) == len(names)


@pytest.mark.parametrize("relative", ["../x", "/etc/x", "images/../../x", "images//x", "images/./x", "..", "."])
def test_paths_from_edited_tables_stay_inside(tmp_path: Path, relative: str) -> None:
    """Paths are read back from tables and ledgers: one that was tampered with must not read or write elsewhere."""
    store = ImageStore(tmp_path / "out")
    with pytest.raises(ValueError, match="not a path inside"):
        store.read(relative)
    with pytest.raises(ValueError, match="not a path inside"):
        store.write(relative, b"x")


@pytest.fixture(params=["local", "local URI", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    """A store of each kind."""
    if request.param == "bucket":
        return ImageStore(f"{request.getfixturevalue('bucket')}/out")
    return ImageStore(tmp_path / "out" if request.param == "local" else f"file://{tmp_path}/out")


def test_bytes_come_back_as_they_were_sent(store: ImageStore) -> None:
    """The file is the evidence of what was delivered: not one byte may change."""
    data = os.urandom(300_000)
    relative = path_of("a")
    assert not store.exists(relative)
    store.write(relative, data)
    assert store.read(relative) == data
    assert store.exists(relative)
    assert store.exists(relative, len(data))
    assert not store.exists(relative, len(data) - 1)


def test_files_are_held_against_their_hash(store: ImageStore) -> None:
    """A row of a table is a claim: the file may be gone or changed."""
    store.write("images/c/s/a.png", b"data")
    sha256 = hashlib.sha256(b"data").hexdigest()
    assert store.matches("images/c/s/a.png", sha256)
    assert not store.matches("images/c/s/a.png", SHA)
    assert not store.matches("images/c/s/b.png", sha256)


def test_writing_again_is_fine(store: ImageStore) -> None:
    """A run that died after the write and before the ledger's commit writes the same file again."""
    for data in (b"torn", b"whole", b"whole"):
        store.write("images/c/s/a.png", data)
    assert store.read("images/c/s/a.png") == b"whole"


def test_a_missing_file_is_a_missing_file(store: ImageStore) -> None:
    """Callers tell "gone" from other trouble by the exception."""
    with pytest.raises(FileNotFoundError):
        store.read("images/c/s/gone.png")


def test_what_is_set_aside_is_kept(store: ImageStore) -> None:
    """Unusable bytes were paid for: they are evidence for a claim, each kept."""
    first = store.set_aside("attempt/1", b"<html>")
    second = store.set_aside("attempt/1", b"\x89PNG\r\n\x1a\n torn")
    assert first.startswith("unusable/attempt_1")
    assert second.endswith(".png")
    assert first != second
    assert store.read(first) == b"<html>"


def test_a_folder_removed_under_the_store_is_made_again(tmp_path: Path) -> None:
    """People tidy up while a run is on; an image that is paid for must still land."""
    store = ImageStore(tmp_path)
    store.write("images/c/s/a.png", b"x")
    (tmp_path / "images/c/s/a.png").unlink()
    (tmp_path / "images/c/s").rmdir()
    store.write("images/c/s/a.png", b"x")
    assert store.read("images/c/s/a.png") == b"x"


def test_threads_may_write_side_by_side(tmp_path: Path) -> None:
    """The engine writes from a pool of threads, and the folder is new to all of them."""
    store = ImageStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(f"images/c/s{i % 5}/{i}.png", b"%d" % i), range(100)))
    assert sum(1 for _ in (tmp_path / "images").rglob("*.png")) == 100


def test_files_that_are_written_together_leave_nothing_behind_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each failure would leave open files in the process and half a batch in the folder."""
    real_rename = os.rename

    def refused(source: str, target: str) -> None:
        if target.endswith("b.png"):
            raise OSError(28, "No space left on device")
        real_rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match="No space"):
        ImageStore(tmp_path).write_all([(f"images/c/{name}.png", b"x") for name in "abc"])
    assert [path.name for path in (tmp_path / "images/c").iterdir()] == ["a.png"]
    assert not _open_below(tmp_path)


def test_a_folder_that_goes_while_a_batch_is_flushed_costs_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be removed any more once left all files of the batch but one open, at each such failure."""
    real_fsync, folder = os.fsync, tmp_path / "images/c"

    def flushed(descriptor: int) -> None:
        real_fsync(descriptor)
        if os.path.realpath(f"/proc/self/fd/{descriptor}").startswith(f"{folder}/"):
            monkeypatch.setattr(os, "fsync", real_fsync)
            shutil.rmtree(folder)

    store = ImageStore(tmp_path)
    store.write("images/c/z.png", b"x")
    monkeypatch.setattr(os, "fsync", flushed)
    store.write_all([(f"images/c/{name}.png", b"x") for name in "abc"])
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "c.png"]
    assert not _open_below(tmp_path)


def _open_below(folder: Path) -> list[str]:
    paths = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").glob("*")]
    return [path for path in paths if path.startswith(str(folder))]


# A child that dies at one step of writing a file over an older one.
DIE_AT = """
import os, stat
from nanobanana_pipeline.storage.images import ImageStore
def die(descriptor, *rest):
    if {step!r} == "rename" or stat.S_ISREG(os.fstat(descriptor).st_mode):
        os._exit(9)
setattr(os, {step!r}, die)
ImageStore({root!r}).write("images/c/s/a.png", b"new" * 100_000)
"""


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_crash_leaves_the_old_file_or_none(tmp_path: Path, step: str) -> None:
    """A half-written image under its final name would be taken for a good one by whoever looks at the folder."""
    store = ImageStore(tmp_path)
    store.write("images/c/s/a.png", b"old")
    child = subprocess.run([sys.executable, "-c", DIE_AT.format(step=step, root=str(tmp_path))], check=False)
    assert child.returncode == 9
    assert store.read("images/c/s/a.png") == b"old"
    (leftover,) = (p for p in (tmp_path / "images/c/s").iterdir() if p.name != "a.png")
    assert store.clean_temp() == []
    os.utime(leftover, (time.time() - 7200, time.time() - 7200))
    assert store.clean_temp() == [f"images/c/s/{leftover.name}"]
    assert [p.name for p in (tmp_path / "images/c/s").iterdir()] == ["a.png"]


def test_cleaning_takes_nothing_but_leftovers(tmp_path: Path) -> None:
    """Cleaning runs unattended next to images that cost money, and to files that people put there."""
    store = ImageStore(tmp_path)
    store.write("images/c/s/a.png", b"x")
    for name in ("note.part", ".nanobanana-note", ".hidden"):
        (tmp_path / "images" / name).write_bytes(b"mine")
    assert store.clean_temp(older_than_s=-60) == []
    assert ImageStore(tmp_path / "nowhere").clean_temp(older_than_s=-60) == []


def test_everything_is_flushed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a name may be there without its data, unless the data went to the disk before the name."""
    steps: list[str] = []
    names: dict[int, str] = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def noted_open(path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = real_open(path, flags, mode)
        names[descriptor] = "temporary" if durable.TEMP_PREFIX in path else os.path.relpath(path, tmp_path)
        return descriptor

    def noted_fsync(descriptor: int) -> None:
        steps.append(f"flush {names[descriptor]}")
        real_fsync(descriptor)

    def noted_rename(source: str, target: str) -> None:
        steps.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    ImageStore(tmp_path).write("images/c/a.png", b"x")
    assert steps == ["flush .", "flush images", "flush temporary", "rename", "flush images/c"]
    steps.clear()
    ImageStore(tmp_path).write_all([("images/c/b.png", b"x"), ("images/c/d.png", b"y")])
    assert steps[-5:] == ["flush temporary", "flush temporary", "rename", "rename", "flush images/c"]


def test_an_object_store_gets_one_whole_object(bucket: str) -> None:
    """No temporary objects: listing and deleting them costs, and puts are whole anyway."""
    root = f"{bucket}/out"
    ImageStore(root).write("images/c/s/a.png", b"x")
    filesystem, base = fsspec.core.url_to_fs(root)
    assert [Path(path).name for path in filesystem.find(base)] == ["a.png"]
