"""Replacing rows in Delta tables: nothing lost, nothing twice, nothing stale, readable by everyone."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.storage import data_files, delta_log, durable
from nanobanana_pipeline.storage import tables as tables_module
from nanobanana_pipeline.storage.query import run_query
from nanobanana_pipeline.storage.schemas import SCHEMAS
from nanobanana_pipeline.storage.tables import Conflict, Tables
from nanobanana_pipeline_tests.storage.rows import results, rows


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Tables of a fresh output."""
    return Tables(tmp_path, simulated=True)


def put(tables: Tables, shard: str, count: int = 3, mark: str = "") -> int:
    """Replace one shard's results as the generation step does."""
    version = tables.version("results")
    return tables.replace("results", results(shard, count, mark), {"shard": shard}, expected_version=version)


def marks(tables: Tables) -> dict[str, list[str]]:
    """The marks of each shard's rows."""
    found: dict[str, list[str]] = {}
    for row in tables.read("results", ["shard", "run_id"]).to_pylist():
        found.setdefault(row["shard"], []).append(row["run_id"])
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_empty_table_has_its_columns(tables: Tables, name: str) -> None:
    """A dashboard may be set up before the first image exists."""
    assert tables.version(name) is None
    assert tables.read(name).schema.equals(SCHEMAS[name])
    assert tables.ensure(name) == tables.ensure(name) == 0
    assert tables.read(name).num_rows == 0
    written = pa.schema(DeltaTable(tables.uri(name)).schema().to_arrow())
    assert written.names == SCHEMAS[name].names
    assert written.field(0).metadata[b"comment"] == SCHEMAS[name].field(0).metadata[b"comment"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_takes_null(tables: Tables, name: str) -> None:
    """A column that is null in every row of a shard is common, and must not lose its type."""
    everything = pa.table({field.name: pa.nulls(2, field.type) for field in SCHEMAS[name]})
    untyped = pa.table({field.name: pa.nulls(2) for field in SCHEMAS[name]})
    tables.append(name, everything)
    tables.append(name, untyped)
    found = tables.read(name)
    assert found.num_rows == 4
    assert found.schema.types == SCHEMAS[name].types


def test_values_come_back_exactly(tables: Tables) -> None:
    """Money to the micro-dollar, times to the microsecond."""
    put(tables, "c-000001", 1)
    (row,) = tables.read("results").to_pylist()
    assert row["cost_usd"] == Decimal("0.067200")
    assert row["submitted_at"] == datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC)
    assert row["text"] is None


def test_only_the_shards_rows_are_replaced(tables: Tables) -> None:
    """Every shard has its own writer: one that disturbs another's rows would lose images from the books."""
    put(tables, "a", 3, "1")
    put(tables, "b", 2, "1")
    put(tables, "a", 1, "2")
    assert marks(tables) == {"a": ["2"], "b": ["1", "1"]}


@pytest.mark.parametrize(
    "shard", ["it's", "a,b", "ü ☃", 'q"q', "back\\slash", "%20", "a' OR '1'='1", "c" * 300, "x=1/y"]
)
def test_any_value_may_be_a_shard(tables: Tables, shard: str) -> None:
    """A predicate is made of a catalogue's name, which anyone may choose."""
    put(tables, "other", 2, "1")
    put(tables, shard, 3, "1")
    put(tables, shard, 2, "2")
    assert marks(tables) == {"other": ["1", "1"], shard: ["2", "2"]}
    assert tables.read("results", predicate={"shard": shard}).num_rows == 2


def test_a_shard_may_become_empty(tables: Tables) -> None:
    """Images whose files are gone leave no row behind."""
    put(tables, "a", 3)
    put(tables, "b", 2)
    put(tables, "a", 0)
    assert set(marks(tables)) == {"b"}


def test_nothing_to_change_is_no_commit(tables: Tables) -> None:
    """Empty shards write nothing: logs full of empty commits would slow every reader."""
    tables.ensure("images")
    assert tables.replace("images", rows("images", 0), {"shard": "a"}, expected_version=0) == 0


def test_a_whole_table_can_be_replaced(tables: Tables) -> None:
    """Rebuilding from the ledger, and daily costs, replace everything at once."""
    put(tables, "a", 3, "1")
    put(tables, "b", 3, "1")
    tables.replace("results", results("c", 2, "2"), None, expected_version=tables.version("results"))
    assert marks(tables) == {"c": ["2", "2"]}


def test_a_stale_writer_is_told(tables: Tables) -> None:
    """A worker that was slow must not put its older view of the ledger over a newer one."""
    put(tables, "a", 3, "1")
    stale = tables.version("results")
    put(tables, "a", 3, "2")
    with pytest.raises(Conflict):
        tables.replace("results", results("a", 3, "old"), {"shard": "a"}, expected_version=stale)
    assert marks(tables) == {"a": ["2", "2", "2"]}


def test_two_first_writers_of_a_shard_are_told_apart(tables: Tables) -> None:
    """Nothing is there to be removed twice, so only the rows that were added can show the clash."""
    tables.ensure("results")
    other = Tables(tables.root, simulated=True)
    mine, theirs = tables.version("results"), other.version("results")
    other.replace("results", results("a", 3, "theirs"), {"shard": "a"}, expected_version=theirs)
    with pytest.raises(Conflict):
        tables.replace("results", results("a", 3, "mine"), {"shard": "a"}, expected_version=mine)
    assert marks(tables) == {"a": ["theirs"] * 3}


def test_a_table_that_came_since_is_a_conflict_only_for_its_rows(tables: Tables) -> None:
    """Two first runs on an empty output both saw no table."""
    put(tables, "a", 3, "theirs")
    tables.replace("results", results("b", 1, "mine"), {"shard": "b"}, expected_version=None)
    with pytest.raises(Conflict):
        tables.replace("results", results("a", 1, "mine"), {"shard": "a"}, expected_version=None)
    assert marks(tables) == {"a": ["theirs"] * 3, "b": ["mine"]}


def test_another_shards_commit_is_no_conflict(tables: Tables) -> None:
    """Shards end all the time; were each an obstacle to the others, none would get through."""
    put(tables, "a", 1, "1")
    seen = tables.version("results")
    for i in range(5):
        put(Tables(tables.root), f"b{i}")
    tables.replace("results", results("a", 1, "2"), {"shard": "a"}, expected_version=seen)
    assert marks(tables)["a"] == ["2"]


def test_a_conflict_leaves_no_files_behind(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is fought over would fill the disk."""
    put(tables, "a", 1)
    original = delta_log.commit
    files: list[int] = []

    def overtaken(delta: DeltaTable, change: delta_log.Change) -> bool:
        monkeypatch.setattr(delta_log, "commit", original)
        put(Tables(tables.root), "a", 2)
        files.append(len(list(Path(tables.uri("results")).glob("*.parquet"))))
        return original(delta, change)

    monkeypatch.setattr(delta_log, "commit", overtaken)
    with pytest.raises(Conflict):
        tables.replace("results", results("a", 3), {"shard": "a"}, expected_version=tables.version("results"))
    assert [len(list(Path(tables.uri("results")).glob("*.parquet"))) + 1] == files


def test_a_commit_whose_answer_was_lost_counts(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store may take a commit and not say so: repeated, our own commit must not look like a rival's."""
    original = delta_log.commit

    def answer_lost(delta: DeltaTable, change: delta_log.Change) -> bool:
        original(delta, change)
        return False

    monkeypatch.setattr(delta_log, "commit", answer_lost)
    monkeypatch.setattr(tables_module, "_MANY_FILES", 2)
    monkeypatch.setattr(tables_module, "_MERGED_AFTER_MS", -1000)
    put(tables, "a", 3, "1")
    tables.append("results", results("b", 1, "1"))
    assert marks(tables) == {"a": ["1", "1", "1"], "b": ["1"]}
    assert tables.maintain("results").merged == 2
    assert marks(tables) == {"a": ["1", "1", "1"], "b": ["1"]}


def test_threads_may_share_one_object(tables: Tables) -> None:
    """One process may write several shards at once."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: put(tables, f"s{i % 4}", 2, str(i)), range(4)))
    assert marks(tables) == {f"s{i}": [str(i)] * 2 for i in range(4)}


def test_files_that_others_merged_are_split_again(tables: Tables) -> None:
    """Someone may run OPTIMIZE on the table; replacing a shard must then keep the others' rows of the same file."""
    for shard in ("a", "b", "c"):
        put(tables, shard, 2, "1")
    DeltaTable(tables.uri("results")).optimize.compact()
    assert len(tables.snapshot("results").uris) == 1
    put(tables, "b", 1, "2")
    assert marks(tables) == {"a": ["1", "1"], "b": ["2"], "c": ["1", "1"]}


def test_rows_with_a_null_are_kept_when_others_are_replaced(tables: Tables) -> None:
    """In SQL null is neither equal nor unequal; such a row must not vanish between the two."""
    both = pa.concat_tables([results("a", 1), results("b", 1).drop(["shard"])], promote_options="default")
    tables.append("results", both)
    put(tables, "a", 1, "2")
    assert marks(tables) == {"a": ["2"], None: [""]}


def test_unknown_columns_are_a_mistake(tables: Tables) -> None:
    """A misspelt column would be dropped in silence."""
    with pytest.raises(ValueError, match="no column colour"):
        tables.append("results", pa.table({"colour": ["red"]}))


def test_values_that_do_not_fit_are_a_mistake(tables: Tables) -> None:
    """Rounding money in silence is losing it; nothing may be left of the attempt."""
    with pytest.raises(pa.ArrowInvalid):
        tables.append("results", pa.table({"cost_usd": pa.array([Decimal("0.0000001")])}))
    assert tables.read("results").num_rows == 0


def test_batches_are_streamed(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of millions of prompts is written without being held in memory, and into more than one file."""
    monkeypatch.setattr(data_files, "_ROWS_PER_GROUP", 10)
    monkeypatch.setattr(data_files, "_ROWS_PER_FILE", 100)
    schema = SCHEMAS["prompts"]
    batch = rows("prompts", 5, catalogue="c", prompt_id="p", shard="c-000001")
    reader = pa.RecordBatchReader.from_batches(batch.schema, (batch.to_batches()[0] for _ in range(50)))
    tables.replace("prompts", reader, {"catalogue": "c"}, expected_version=None)
    files = [pq.read_metadata(file) for file in tables.snapshot("prompts").uris]
    assert sorted((file.num_rows, file.num_row_groups) for file in files) == [(50, 5), (100, 10), (100, 10)]
    assert tables.read("prompts").schema.equals(schema)


def test_reading_one_shard_opens_one_file(tables: Tables) -> None:
    """With thousands of shards, looking into each file for one of them is what would be slow."""
    for i in range(5):
        put(tables, f"c-{i:06d}")
    assert len(tables.snapshot("results", {"shard": "c-000003"}).uris) == 1
    assert tables.read("results", ["item_id"], {"shard": "c-000003"}).column_names == ["item_id"]
    assert tables.read("results", predicate=pc.field("sample") > 1).num_rows == 0


def test_files_are_compressed_and_carry_few_statistics(tables: Tables) -> None:
    """Statistics of every column made commits five times dearer at 10,000 shards."""
    put(tables, "a")
    (file,) = tables.snapshot("results").uris
    assert pq.read_metadata(file).row_group(0).column(0).compression == "ZSTD"
    entry = delta_log.entry(tables.uri("results"), 1).read_text()
    (stats,) = (json.loads(json.loads(line)["add"]["stats"]) for line in entry.splitlines() if '"add"' in line)
    assert stats["minValues"] == stats["maxValues"] == {"catalogue": "a", "shard": "a"}
    assert stats["numRecords"] == 3
    # In an object store, a look back reaches as far as the files of replaced rows are kept.
    configuration = DeltaTable(tables.uri("results")).metadata().configuration
    assert configuration["delta.logRetentionDuration"] == "interval 168 hours"


def test_simulated_and_real_rows_never_mix(tables: Tables, tmp_path: Path) -> None:
    """Pictures of a simulator among real ones make every sum wrong."""
    put(tables, "a")
    metadata = DeltaTable(tables.uri("results")).metadata()
    assert metadata.configuration["nanobanana.mode"] == "simulated"
    assert "Simulated" in metadata.description
    with pytest.raises(UserError, match="holds simulated rows, and this work is live"):
        put(Tables(tmp_path, simulated=False), "b")
    assert set(marks(tables)) == {"a"}


def test_every_part_of_a_commit_is_flushed_in_order(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that outlives a power cut without its data can't be read any more."""
    put(tables, "a")
    steps: list[str] = []
    original_sync, original_commit = durable.sync, delta_log.commit

    def noted_sync(path: str) -> None:
        steps.append("data" if path.endswith(".parquet") else Path(path).name)
        original_sync(path)

    def noted_commit(delta: DeltaTable, change: delta_log.Change) -> bool:
        steps.append("commit")
        return original_commit(delta, change)

    monkeypatch.setattr(durable, "sync", noted_sync)
    monkeypatch.setattr(delta_log, "commit", noted_commit)
    put(tables, "a")
    assert steps == ["data", "results", "commit", "00000000000000000002.json", "_delta_log"]


def test_the_log_is_summed_up_and_kept_short(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a table reads every entry since the last checkpoint, and looks at every file of the log."""
    monkeypatch.setattr(delta_log, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(delta_log, "LOG_KEPT_S", 0)
    monkeypatch.setattr(delta_log, "VERSIONS_KEPT", 4)
    for i in range(17):
        put(tables, f"s{i}")
    log = [path.name for path in Path(tables.uri("results"), "_delta_log").iterdir()]
    assert f"{15:020}.checkpoint.parquet" in log
    assert f"{5:020}.checkpoint.parquet" not in log
    assert f"{9:020}.json" not in log
    assert len(marks(tables)) == 17


def test_one_may_look_back(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a figure was yesterday is asked when it has changed; each version kept can be read, whatever came since."""
    monkeypatch.setattr(delta_log, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(delta_log, "LOG_KEPT_S", 0)
    monkeypatch.setattr(delta_log, "VERSIONS_KEPT", 4)
    for i in range(1, 17):
        put(tables, "a", 1, str(i))
    for version in range(11, 17):
        then = DeltaTable(tables.uri("results"), version=version).to_pyarrow_table(columns=["run_id"])
        assert then["run_id"].to_pylist() == [str(version)]


def test_a_version_that_is_tidied_away_is_a_conflict(tables: Tables) -> None:
    """A writer that was held up for hours can't know what happened since: it reads the ledger again."""
    for mark in "123":
        put(tables, "a", 1, mark)
    DeltaTable(tables.uri("results")).create_checkpoint()
    for version in (0, 1, 2):
        delta_log.entry(tables.uri("results"), version).unlink()
    with pytest.raises(Conflict):
        Tables(tables.root).replace("results", results("a"), {"shard": "a"}, expected_version=1)


def test_an_older_table_gets_the_new_columns(tables: Tables) -> None:
    """After an upgrade last month's tables are read with nulls, and grow the columns at the next write."""
    old = pa.schema([field for field in SCHEMAS["results"] if field.name not in {"polls", "run_id"}])
    older = results("a", 2).drop(["run_id"])
    DeltaTable.create(tables.uri("results"), schema=old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tables_module.SCHEMAS, "results", old)
        tables.append("results", older)
    assert not tables.snapshot("results").even
    assert marks(tables) == {"a": [None, None]}
    put(tables, "b", 1, "new")
    assert marks(tables) == {"a": [None, None], "b": ["new"]}
    assert {"polls", "run_id"} <= {field.name for field in DeltaTable(tables.uri("results")).schema().fields}
    put(tables, "a", 1, "new")
    assert tables.snapshot("results").even


def test_a_newer_table_keeps_its_columns(tables: Tables) -> None:
    """A worker that was not upgraded yet writes among newer ones; what only they know stays."""
    newer = SCHEMAS["results"].append(pa.field("mood", pa.string()))
    merry, without = results("a", 1).append_column("mood", pa.array(["merry"])), results("b", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tables_module.SCHEMAS, "results", newer)
        tables.append("results", merry)
        tables.append("results", pa.concat_tables([without, results("c", 1)]))
    put(tables, "b", 1, "older")
    found = {row["shard"]: row["mood"] for row in tables.read("results").to_pylist()}
    assert found == {"a": "merry", "b": None, "c": None}


def test_small_files_are_merged_without_changing_a_row(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file costs every reader a look: with thousands of shards that is most of a query's time."""
    monkeypatch.setattr(tables_module, "_MANY_FILES", 5)
    monkeypatch.setattr(tables_module, "_MERGED_FILES", 4)
    monkeypatch.setattr(tables_module, "_MERGED_AFTER_MS", -1000)
    for i in range(6):
        put(tables, f"s{i}", 2, "1")
    before = tables.read("results").sort_by("item_id")
    assert tables.maintain("results").merged == 6
    assert len(tables.snapshot("results").uris) == 2
    assert tables.snapshot("results").even
    assert tables.read("results").sort_by("item_id").equals(before)
    put(tables, "s3", 1, "2")
    assert marks(tables)["s3"] == ["2"]
    assert len(marks(tables)) == 6


def test_maintaining_leaves_what_readers_may_still_use(tables: Tables) -> None:
    """A query that has just begun reads the files that it saw."""
    put(tables, "a")
    (old,) = tables.snapshot("results").uris
    put(tables, "a")
    assert tables.maintain("results").deleted == 0
    assert Path(old).exists()
    assert tables.maintain("images").merged == 0


def test_a_table_behind_a_uri(tmp_path: Path) -> None:
    """A file URI is a folder like any other."""
    tables = Tables(f"file://{tmp_path}/with space", simulated=False)
    put(tables, "a", 2, "1")
    assert marks(Tables(tmp_path / "with space")) == {"a": ["1", "1"]}


def test_a_table_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data goes through Delta's own file system there; a folder stands in for the store, taken for remote."""
    monkeypatch.setattr(durable, "is_remote", lambda root: root.startswith("file://"))
    tables = Tables(f"file://{tmp_path}", simulated=True)
    put(tables, "a", 3, "1")
    put(tables, "b", 2, "1")
    put(tables, "a", 1, "2")
    assert marks(tables) == {"a": ["2"], "b": ["1", "1"]}
    assert [repair for repair in tables.repair(lambda _: None) if repair.table == "results"] == []
    assert tables.maintain("results").merged == 0
    assert run_query(f"file://{tmp_path}", "SELECT shard, count(*) n FROM results GROUP BY 1 ORDER BY 1", "csv") == (
        "shard,n\na,1\nb,2\n"
    )
