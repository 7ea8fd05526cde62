"""Names and the default size of shards. Which prompt is in which shard is the ledger's to remember."""

from nanobanana_pipeline.catalogue.identity import safe_name
from nanobanana_pipeline.settings import Settings

DEFAULT_SHARD_SIZE: int = Settings.model_fields["shard_size"].default
"""Prompts in a shard."""


def shard_key(catalogue: str, number: int) -> str:
    """The partition key of a catalogue's shard, as `spring-000001`: safe in a path, without comma, one of a kind."""
    return f"{safe_name(catalogue)}-{number:06d}"
