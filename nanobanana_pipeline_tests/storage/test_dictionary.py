"""docs/tables.md: a page that says something untrue of the tables is worse than none."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.storage import tables as tables_module
from nanobanana_pipeline.storage.dictionary import MARK, with_dictionary
from nanobanana_pipeline.storage.schemas import SCHEMAS
from nanobanana_pipeline.storage.tables import Tables
from nanobanana_pipeline_tests.storage.rows import results, rows

PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_dictionary_is_what_the_schemas_say() -> None:
    """Run `python -m nanobanana_pipeline.storage.dictionary` after changing a schema."""
    assert with_dictionary(PAGE) == PAGE


def test_every_column_is_in_the_dictionary() -> None:
    """The generator must not drop one."""
    for name, schema in SCHEMAS.items():
        section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == schema.names


def test_a_page_without_the_mark_is_left_alone() -> None:
    """Else the page's hand-written part would be lost."""
    with pytest.raises(UserError, match="put it back"):
        with_dictionary("# Tables\n" + PAGE.replace(MARK, ""))


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables where the page's examples look for them."""
    monkeypatch.chdir(tmp_path)
    tables = Tables("data/output", simulated=False)
    tables.append("results", results("sample-000001", 3))
    tables.append("results", results("sample-000002", 2).drop(["status"]))
    tables.append("attempts", rows("attempts", 2, shard="sample-000001", attempt_id=["1", "2"]))
    tables.append("attempts", rows("attempts", 1, shard="sample-000002", attempt_id="3"))
    tables.append("images", rows("images", 1, item_id="sample-000001/0", path="images/a.png", bytes=7))
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES, ids=["pandas", "polars", "duckdb", "deltalake", "views", "bucket"])
def test_the_examples_run_and_are_right(output: Path, example: str) -> None:
    """They are what an analyst tries first."""
    found: dict[str, Any] = {}
    # The store's own tests read from a bucket; here it is enough that the lines are right.
    exec(example.replace("s3://bucket/", "data/"), found)  # noqa: S102 - the page's own examples
    if "spent" in found:
        assert found["spent"]["succeeded"] == Decimal("0.201600")
    if "failed" in found:
        assert found["failed"].shape == (0, 3)
        assert found["images"]["path"].to_list() == ["images/a.png"]
    if "by_campaign" in found:
        assert found["by_campaign"]["items"].to_list() == [5]
    if "attempts" in found:
        assert sorted(found["attempts"]["attempt_id"].to_pylist()) == ["1", "2"]
        assert found["kind"] == "live"
        assert found["history"][0]["version"] == 2
    if "statuses" in found:
        assert found["statuses"]["items"].sum() == 5
    if "largest" in found:
        assert found["largest"]["path"].to_list() == ["images/a.png"]


def test_older_and_newer_files_read_together_everywhere(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade the readers of the page meet files of both kinds."""
    older = pa.schema([field for field in SCHEMAS["images"] if field.name != "has_c2pa"])
    with monkeypatch.context() as patch:
        patch.setitem(tables_module.SCHEMAS, "images", older)
        Tables("old").append("images", rows("images", 1, shard="older"))
    Tables("old").append("images", rows("images", 1, shard="newer", has_c2pa=True))
    uri = "old/tables/images"
    assert dict(pl.read_delta(uri).select("shard", "has_c2pa").iter_rows()) == {"older": None, "newer": True}
    assert len(DeltaTable(uri).to_pandas()) == 2
    files = DeltaTable(uri).file_uris()
    sql = "SELECT count(*), count(has_c2pa) FROM read_parquet($1, union_by_name = true)"
    assert duckdb.execute(sql, [files]).fetchall() == [(2, 1)]
