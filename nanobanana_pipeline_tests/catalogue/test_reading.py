"""Finding catalogues and reading their files."""
# pyarrow has no types of its own.
# pyright: reportUnknownParameterType=false

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanobanana_pipeline.catalogue.reading import (
    CatalogueFile,
    CatalogueSource,
    UnreadableFileError,
    find_catalogues,
    iter_batches,
)
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.object_stores.opening import open_uri


def write(path: Path, prompts: list[str] | None = None) -> Path:
    """Write a small Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"prompt": prompts or ["a fox"]}), path)
    return path


def names(root: Path | str) -> dict[str, list[str]]:
    """The catalogues under a root, with the paths of their files."""
    return {source.name: [file.path for file in source.files] for source in find_catalogues(str(root))}


def only(root: Path) -> CatalogueSource:
    """The one catalogue under a root."""
    [source] = find_catalogues(str(root))
    return source


def test_children_are_catalogues(tmp_path: Path) -> None:
    """A file or a folder of files, named as a person would call it; everything else in the folder is left alone."""
    write(tmp_path / "spring.parquet")
    write(tmp_path / "autumn" / "part-1.parquet")
    write(tmp_path / "autumn" / "more" / "part-0.PARQUET")
    write(tmp_path / "_draft.parquet")
    write(tmp_path / ".hidden" / "a.parquet")
    write(tmp_path / "autumn" / "_delta_log" / "0.parquet")
    write(tmp_path / "autumn" / ".part-2.parquet.crc.parquet")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "references").mkdir()
    assert names(tmp_path) == {
        "autumn": ["autumn/more/part-0.PARQUET", "autumn/part-1.parquet"],
        "spring": ["spring.parquet"],
    }


def test_names_may_be_anything(tmp_path: Path) -> None:
    """A catalogue is called what its file is called, blanks, dots, accents and commas included."""
    wild = ["a, b", "v1.2", "été 2026", "100%", "a::b", "#1?"]
    for name in wild:
        write(tmp_path / f"{name}.parquet")
    assert set(names(tmp_path)) == set(wild)
    assert (
        sum(batch.num_rows for source in find_catalogues(str(tmp_path)) for batch in iter_batches(source.files[0])) == 6
    )


def test_catalogues_in_an_object_store(tmp_path: Path, bucket: str) -> None:
    """The root may be a bucket, and what was listed there can be read from there; a new version shows as a change."""
    store, _ = open_uri(bucket)
    name = bucket.removeprefix("s3://")
    store.pipe(f"{name}/cats/spring.parquet", write(tmp_path / "a.parquet", ["a cat"]).read_bytes())
    store.pipe(f"{name}/cats/folder/b.parquet", write(tmp_path / "a.parquet", ["b cat"]).read_bytes())
    sources = find_catalogues(f"{bucket}/cats")
    assert [source.name for source in sources] == ["folder", "spring"]
    read = [batch.column("prompt").to_pylist() for source in sources for batch in iter_batches(source.files[0])]
    assert read == [["b cat"], ["a cat"]]
    store.pipe(f"{name}/cats/spring.parquet", write(tmp_path / "a.parquet", ["c cat"]).read_bytes())
    assert find_catalogues(f"{bucket}/cats") != sources


def test_empty_root_has_no_catalogue(tmp_path: Path) -> None:
    """A new workspace is empty, which is no error."""
    assert find_catalogues(str(tmp_path)) == []


def test_wrong_roots_say_what_to_do(tmp_path: Path) -> None:
    """A mistyped path is the commonest mistake of all: one line, with the variable to correct."""
    with pytest.raises(UserError, match=r"no folder .*nowhere.*NANOBANANA_CATALOGUE"):
        find_catalogues(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"is a file.*NANOBANANA_CATALOGUE"):
        find_catalogues(str(write(tmp_path / "spring.parquet")))
    with pytest.raises(UserError, match="NANOBANANA_CATALOGUE"):
        find_catalogues("nosuchstore://bucket")


def test_two_catalogues_of_one_name_are_refused(tmp_path: Path) -> None:
    """Taken for one, a file copied into a folder of its own name would be paid for twice."""
    write(tmp_path / "spring.parquet")
    write(tmp_path / "spring" / "part-0.parquet")
    with pytest.raises(UserError, match=r"'spring'.*rename one"):
        find_catalogues(str(tmp_path))


def test_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Such a name could be kept in no table."""
    write(tmp_path / "a.parquet").rename(tmp_path / os.fsdecode(b"f\xfc.parquet"))
    with pytest.raises(UserError, match="rename the file"):
        find_catalogues(str(tmp_path))


def test_fingerprint_is_that_of_the_files(tmp_path: Path) -> None:
    """An unchanged catalogue is not read again; any change must show."""
    path = write(tmp_path / "spring" / "a.parquet")
    before = only(tmp_path).fingerprint
    assert only(tmp_path).fingerprint == before
    write(tmp_path / "spring" / "b.parquet")
    added = only(tmp_path).fingerprint
    (tmp_path / "spring" / "b.parquet").unlink()
    write(path, ["another fox"])
    written = only(tmp_path).fingerprint
    os.utime(path, (1, 1))
    touched = only(tmp_path).fingerprint
    path.rename(path.with_name("c.parquet"))
    renamed = only(tmp_path).fingerprint
    assert len({before, added, written, touched, renamed}) == 5


def test_links_count_as_what_they_lead_to(tmp_path: Path) -> None:
    """A catalogue may be linked into place; its fingerprint must follow the file, not the link."""
    target = write(tmp_path / "elsewhere" / "real.parquet")
    root = tmp_path / "root"
    root.mkdir()
    (root / "spring.parquet").symlink_to(target)
    (root / "autumn").symlink_to(target.parent)
    assert names(root) == {"autumn": ["autumn/real.parquet"], "spring": ["spring.parquet"]}
    before = only_file(root, "spring")
    os.utime(target, (1, 1))
    assert only_file(root, "spring") != before


def only_file(root: Path, name: str) -> CatalogueFile:
    """The first file of a catalogue."""
    return next(source for source in find_catalogues(str(root)) if source.name == name).files[0]


def test_broken_link_is_listed_and_unreadable(tmp_path: Path) -> None:
    """A file that can't be had is a rejection to show, not one to pass over in silence."""
    (tmp_path / "spring.parquet").symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(UnreadableFileError):
        next(iter_batches(only(tmp_path).files[0]))


def test_file_removed_after_listing(tmp_path: Path) -> None:
    """Catalogues change while they are read."""
    write(tmp_path / "spring.parquet")
    source = only(tmp_path)
    (tmp_path / "spring.parquet").unlink()
    with pytest.raises(UnreadableFileError, match="not there"):
        next(iter_batches(source.files[0]))


def test_empty_table_gives_its_columns(tmp_path: Path) -> None:
    """A file without rows may still lack a column, which has to be told."""
    pq.write_table(pa.schema({"text": pa.string(), "x": pa.list_(pa.int8())}).empty_table(), tmp_path / "a.parquet")
    [batch] = iter_batches(only(tmp_path).files[0])
    assert (batch.num_rows, batch.schema.names) == (0, ["text", "x"])


def test_one_huge_row_group_is_read_in_small_steps(tmp_path: Path) -> None:
    """Memory must not grow with the catalogue, nor with the row groups that its writer chose."""
    rows = 120_000
    table = pa.table({"prompt": [f"{i} " + random.randbytes(100).hex() for i in range(rows)]})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=rows, compression="none")
    size = table.nbytes
    del table
    before, most, seen = pa.total_allocated_bytes(), 0, 0
    for batch in iter_batches(only(tmp_path).files[0]):
        most = max(most, pa.total_allocated_bytes() - before)
        seen += batch.num_rows
    assert seen == rows
    assert most < size / 2


def test_rows_with_much_text_come_in_small_batches(tmp_path: Path) -> None:
    """Sixteen thousand rows of a megabyte each would not fit into memory."""
    write(tmp_path / "big.parquet", [random.randbytes(200_000).hex() for _ in range(130)])
    assert [batch.num_rows for batch in iter_batches(only(tmp_path).files[0])] == [64, 64, 2]


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a Parquet file with several row groups and types."""
    path = tmp_path_factory.mktemp("whole") / "a.parquet"
    rows = 400
    columns = {
        "prompt": [f"a fox, number {i}" for i in range(rows)],
        "image_urls": [["https://example.com/a.png"] * (i % 3) for i in range(rows)],
        "score": [i / 7 for i in range(rows)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path.read_bytes()


def read_all(path: Path) -> Iterator[pa.RecordBatch]:
    """All batches of one file."""
    return iter_batches(CatalogueFile(str(path), path.name, 1, ""))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_torn_files_are_unreadable_and_nothing_else(whole_file: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """A half-written or damaged file must never end in a traceback, whatever the damage."""
    torn = bytearray(whole_file)
    if data.draw(st.booleans()):
        del torn[data.draw(st.integers(0, len(torn) - 1)) :]
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole_file) - 1), st.integers(0, 255)))):
        if place < len(torn):
            torn[place] = value
    path = tmp_path / "torn.parquet"
    path.write_bytes(torn)
    with contextlib.suppress(UnreadableFileError):
        assert sum(batch.num_rows for batch in read_all(path)) <= 400


@pytest.mark.parametrize("content", [b"", b"PAR1", b"prompt\na fox\n", b"PK\x03\x04"])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    """A CSV that somebody renamed is told like any other unreadable file."""
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError):
        next(read_all(path))


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """A folder called like a file is a catalogue of that name with a suffix, not a failure."""
    write(tmp_path / "spring.parquet" / "part-0.parquet")
    assert names(tmp_path) == {"spring.parquet": ["spring.parquet/part-0.parquet"]}
