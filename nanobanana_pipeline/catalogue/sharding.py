"""Names of shards. Which prompt is in which shard is the ledger's to remember."""

from nanobanana_pipeline.catalogue.identity import safe_name


def shard_key(catalogue: str, number: int) -> str:
    """The partition key of a catalogue's shard, as `spring-000001`: safe in a path, without comma, one of a kind."""
    return f"{safe_name(catalogue)}-{number:06d}"
