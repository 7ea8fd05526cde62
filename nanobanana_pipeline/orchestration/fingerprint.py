"""One mark for the state of all catalogues' files, shared by what observes them and what waits for them to change."""

import hashlib
from collections.abc import Collection, Iterable

import orjson

from nanobanana_pipeline.catalogue.reading import CatalogueSource


def catalogue_fingerprint(sources: Iterable[CatalogueSource], being_written: Collection[str] = ()) -> str:
    """32 hex digits that change when a catalogue is added, removed or written, but not while it is `being_written`."""
    facts = sorted((source.name, "" if source.name in being_written else source.fingerprint) for source in sources)
    return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:32]
