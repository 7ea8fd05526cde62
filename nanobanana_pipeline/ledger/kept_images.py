"""Whether a request of an item has an image already: what is never paid for again, whatever the item went through."""

import sqlalchemy as sa

from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.states import AttemptState

_attempts = schema.attempts


def has_image(item_id: str | sa.Column[str], request_hash: str | sa.Column[str]) -> sa.Exists:
    """Whether an attempt of the item has stored an image of this request."""
    return sa.exists().where(
        _attempts.c.item_id == item_id,
        _attempts.c.request_hash == request_hash,
        _attempts.c.state == AttemptState.STORED.value,
        # What was adopted from the tables may lack the files of a request that was edited since.
        _attempts.c.images.is_not(None),
    )
