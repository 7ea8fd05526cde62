"""From catalogues to work: every row checked, good ones entered in the ledger, bad ones told why.

Spends nothing. A catalogue whose files have not changed since it was last entered is not read again.
"""

import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final

import orjson

from nanobanana_pipeline.catalogue.reading import CatalogueSource, find_catalogues
from nanobanana_pipeline.catalogue.validation import FILE_RULES, CataloguePrompt, RejectedPrompt, Rule, validate
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.evidence import refuse_older_ledger
from nanobanana_pipeline.generation.publishing import Row, publish_prompts, publish_shard, replace_rows
from nanobanana_pipeline.generation.staleness import shards_of_other_attempts
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import statement
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.ledger.registration import GONE, Registration
from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.settings import Settings

_EXAMPLES = 20

MOSTLY: Final = 0.5
"""Share of a catalogue's requests that, already paid for under another name, looks like a renamed file."""


@dataclass(slots=True)
class CatalogueReport:
    """What a look at one catalogue brought. `registration` is None when it had not changed (or was only checked)."""

    name: str
    prompts: int = 0
    items: int = 0
    rejected: int = 0
    rejected_by_rule: Counter[Rule] = field(default_factory=Counter)
    examples: list[RejectedPrompt] = field(default_factory=list)
    registration: Registration | None = None
    paid_elsewhere: Counter[str] = field(default_factory=Counter)
    """Prompts without an image here whose very request has one under another catalogue's name, by that name."""

    @property
    def seems_renamed(self) -> str | None:
        """The name that most of the prompts have their images under, as after a file was renamed."""
        name, prompts = next(iter(self.paid_elsewhere.most_common(1)), ("", 0))
        return name if prompts > self.prompts * MOSTLY else None

    @property
    def readable(self) -> bool:
        """Whether every file could be read; what is missing from one that could not was not removed by anyone."""
        return not FILE_RULES & self.rejected_by_rule.keys()

    def count(self, prompts: Sequence[CataloguePrompt], rejected: Sequence[RejectedPrompt]) -> None:
        """Add some rows."""
        self.prompts += len(prompts)
        self.items += sum(prompt.samples for prompt in prompts)
        self.rejected += len(rejected)
        self.rejected_by_rule.update(row.rule for row in rejected)
        self.examples += rejected[: _EXAMPLES - len(self.examples)]


@dataclass(slots=True)
class RefreshReport:
    """What a refresh brought, by catalogue, and the shards whose rows changed."""

    catalogues: list[CatalogueReport] = field(default_factory=list)
    removed: list[Registration] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    """Every shard there is now."""

    @property
    def changed_shards(self) -> set[str]:
        """Shards with new, edited or removed items."""
        registrations = [report.registration for report in self.catalogues if report.registration] + self.removed
        return {shard for registration in registrations for shard in registration.shards}


def check(
    settings: Settings, spec: ModelSpec, names: Sequence[str] | None = None, *, ledger: Ledger | None = None
) -> list[CatalogueReport]:
    """Check catalogues (all, or those named) without writing or spending anything.

    With the `ledger`, if there is one already, it is seen which prompts have their images under another name.
    """
    reports: list[CatalogueReport] = []
    for source in chosen_sources(settings, names):
        report = CatalogueReport(source.name)
        for batch in validate(source, spec):
            report.count(batch.prompts, batch.rejected)
            if ledger is not None:
                _look_elsewhere(ledger, report, batch.prompts)
        reports.append(report)
    return reports


def _look_elsewhere(ledger: Ledger, report: CatalogueReport, prompts: Sequence[CataloguePrompt]) -> None:
    with ledger.database.read() as connection:
        names = statement.names_of_images(connection, [prompt.request_hash for prompt in prompts])
    for prompt in prompts:
        found = names.get(prompt.request_hash)
        if found and report.name not in found:
            report.paid_elsewhere[min(found)] += 1


def refresh(workspace: Workspace, names: Sequence[str] | None = None) -> RefreshReport:
    """Bring the ledger and the tables up to date with the catalogues (all, or those named)."""
    sources = chosen_sources(workspace.settings, names)
    report = RefreshReport()
    for source in sources:
        report.catalogues.append(_refresh_one(workspace, source))
    if names is None:
        report.removed = workspace.ledger.deactivate_missing([source.name for source in sources])
        for registration in report.removed:
            publish_prompts(workspace, registration.catalogue)
            _publish_rejected(workspace, registration.catalogue, io.BytesIO())
            for shard in sorted(registration.shards):
                publish_shard(workspace, shard)
            # Last of all, as for a catalogue that is there: killed before, it is done again.
            workspace.ledger.seal(registration.catalogue, GONE)
    report.shards = [work.shard for work in workspace.ledger.shard_work()]
    return report


def _refresh_one(workspace: Workspace, source: CatalogueSource) -> CatalogueReport:
    report = CatalogueReport(source.name)
    if is_registered(workspace, source):
        return report
    # Before anything is entered: with an older ledger, what has its images would be new.
    refuse_older_ledger(workspace, shards_of_other_attempts(workspace, source.name))
    # In a file: a catalogue of a million bad rows must not need the memory of a million messages.
    with tempfile.TemporaryFile() as rejected:

        def batches() -> Iterator[Sequence[CataloguePrompt]]:
            for batch in validate(source, workspace.spec):
                report.count(batch.prompts, batch.rejected)
                rejected.writelines(orjson.dumps(row) + b"\n" for row in batch.rejected)
                yield batch.prompts

        report.registration = workspace.ledger.register(
            source.name,
            batches(),
            default_resolution=workspace.spec.default_resolution,
            shard_size=workspace.settings.shard_size,
            complete=lambda: report.readable,
        )
        publish_prompts(workspace, source.name)
        _publish_rejected(workspace, source.name, rejected)
    for shard in sorted(report.registration.shards):
        publish_shard(workspace, shard)
    if report.readable:
        # Last of all: killed before, it is done again, tables included.
        workspace.ledger.seal(source.name, _fingerprint(source, workspace.spec))
    return report


def is_registered(workspace: Workspace, source: CatalogueSource) -> bool:
    """Whether the ledger and the tables hold a catalogue as its files are now."""
    return workspace.ledger.registered_fingerprint(source.name) == _fingerprint(source, workspace.spec)


def all_registered(workspace: Workspace) -> bool:
    """Whether every catalogue is registered as it is now, and none is gone that had not been said to be."""
    sources = chosen_sources(workspace.settings, None)
    present = {source.name for source in sources}
    known = {name for name, fingerprint in workspace.ledger.fingerprints().items() if fingerprint != GONE}
    return known == present and all(is_registered(workspace, source) for source in sources)


def _publish_rejected(workspace: Workspace, catalogue: str, rejected: IO[bytes]) -> None:
    def rows() -> Iterator[Row]:
        rejected.seek(0)
        return map(orjson.loads, rejected)

    replace_rows(workspace, "rejected_prompts", {"catalogue": catalogue}, rows)


def _fingerprint(source: CatalogueSource, spec: ModelSpec) -> str:
    """Changes with the files, and with the rules that they are held against."""
    rules = spec.model_dump_json(include={"name", "limits", "options"})
    return hashlib.sha256(f"{source.fingerprint} {rules}".encode()).hexdigest()[:32]


def chosen_sources(settings: Settings, names: Sequence[str] | None) -> list[CatalogueSource]:
    """The catalogues there are, or those named. Raises `UserError` for a name that is none of them."""
    sources = find_catalogues(settings.catalogue)
    if names is None:
        return sources
    known = {source.name: source for source in sources}
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UserError(f"there is no catalogue {name} in {settings.catalogue}; there is: {listed}")
    return [known[name] for name in names]
