"""One mark for the state of all catalogues' files, shared by what observes them and what waits for them to change."""

import hashlib
from collections.abc import Iterable

import orjson

from nanobanana_pipeline.catalogue.reading import CatalogueSource


def catalogue_fingerprint(sources: Iterable[CatalogueSource]) -> str:
    """32 hex digits that change when a catalogue is added, removed or written."""
    facts = sorted((source.name, source.fingerprint) for source in sources)
    return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:32]
