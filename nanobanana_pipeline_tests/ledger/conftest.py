"""A ledger on each database."""

from collections.abc import Iterator

import pytest

from nanobanana_pipeline.ledger.ledger import Ledger


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger, once on SQLite and once on PostgreSQL."""
    with Ledger(ledger_url) as opened:
        yield opened
