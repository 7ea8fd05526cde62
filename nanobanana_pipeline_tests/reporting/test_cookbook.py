"""docs/cookbook.md: people copy from it, so each query must work, and each answer be the real one."""

import re
from pathlib import Path

import pytest
from deltalake import DeltaTable

from nanobanana_pipeline_tests.reporting.cookbook import PAGE, answer, make, recipes


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output that the page asks."""
    return make(tmp_path_factory.mktemp("cookbook"))


def test_every_answer_is_the_real_one(output: str) -> None:
    """`python -m nanobanana_pipeline_tests.reporting.cookbook` writes them anew."""
    page = list(recipes(PAGE.read_text()))
    assert len(page) == 15
    for sql, answered in page:
        assert answer(output, sql) == answered, sql


def test_one_may_look_back_as_the_page_says(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time travel is used once a year, in a hurry."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "output").symlink_to(output)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {}

    exec(code, names)  # noqa: S102 - the page's own lines, which readers run too

    assert isinstance(names["then"], DeltaTable)
    assert len(names["changed"]) > 0  # pyright: ignore[reportArgumentType]
