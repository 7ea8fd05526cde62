"""What the pages say is proven by a test is: the test that they name is there."""

import ast
import re
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


@pytest.mark.parametrize("page", ["docs/reliability.md", "SECURITY.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    """A renamed test would leave a promise that nobody can check."""
    named = _NAMED.findall((_TESTS.parent / page).read_text())
    assert len(named) > 20
    assert [f"{file}::{name}" for file, name in named if name not in _tests_in(_TESTS / file)] == []


def _tests_in(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
