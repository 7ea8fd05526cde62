"""The catalogue's assets: what is in the folder of catalogues, which prompts of it are good, and why others are not.

Nothing here spends anything.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import dagster as dg
import orjson
from pydantic import Field

from nanobanana_pipeline.catalogue.reading import find_catalogues
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.intake import CatalogueReport, RefreshReport, refresh
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.registration import Registration
from nanobanana_pipeline.ledger.shard_facts import fingerprints
from nanobanana_pipeline.orchestration import checks, previews
from nanobanana_pipeline.orchestration.failures import at_work, one_line_failures
from nanobanana_pipeline.orchestration.fingerprint import catalogue_fingerprint
from nanobanana_pipeline.orchestration.metadata import (
    MODE,
    Metadata,
    markdown_table,
    money,
    table_definition,
    table_state,
)
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.orchestration.partitions import add_shards
from nanobanana_pipeline.orchestration.resources import NanoBananaResource, mode_of
from nanobanana_pipeline.reporting.approval import approval_of, save
from nanobanana_pipeline.reporting.plan import plan

GROUP: Final = "catalogue"
OWNERS: Final = ("team:image-pipeline",)

_ABOUT_CATALOGUE: Final = (
    "The Parquet files with your prompts, in the catalogue folder (`NANOBANANA_CATALOGUE`). Each file, or folder of "
    "files, is one catalogue. They are only read: observing them tells Dagster whether any has changed. Free."
)
_ABOUT_PROMPTS: Final = (
    "Every prompt of the catalogues that can be generated: checked against the model's limits, and given its shard for "
    "good.\n\n**Start here:** materialise it, and the shards to generate appear as partitions of `images`. Do so again "
    "whenever catalogues change (`catalogue_sensor` does). Free: nothing is sent to the provider."
)
_ABOUT_REJECTED: Final = (
    "Every row of the catalogues that breaks a rule, with the file, row, column and value at fault and what would be "
    "right. The good rows go on without them. Made together with `prompts`. Free."
)


def build_catalogue(names: Names) -> list[dg.AssetsDefinition]:
    """The catalogue's assets of one pipeline."""
    return [_prompt_catalogue(names), _prompts(names)]


def _prompt_catalogue(names: Names) -> dg.AssetsDefinition:
    spec = dg.AssetSpec(
        names.key("prompt_catalogue"),
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        description=_ABOUT_CATALOGUE,
    )

    def observe(nano_banana: NanoBananaResource) -> dg.ObserveResult:
        """Look at the catalogues' files, without reading them."""
        with one_line_failures():
            root = nano_banana.settings().catalogue
            sources = find_catalogues(root)
        files = [(source.name, len(source.files), sum(file.size for file in source.files)) for source in sources]
        return dg.ObserveResult(
            asset_key=spec.key,
            data_version=dg.DataVersion(catalogue_fingerprint(sources)),
            metadata={
                "folder": dg.MetadataValue.path(root),
                "catalogues": len(sources),
                "files": sum(len(source.files) for source in sources),
                "listing": markdown_table(("catalogue", "files", "bytes"), files, numbers=2),
            },
        )

    with previews.accepted():
        return dg.multi_observable_source_asset(name="prompt_catalogue", specs=[spec])(observe)


class RefreshConfig(dg.Config):
    """Which catalogues to read."""

    catalogues: list[str] = Field(
        default_factory=list,
        description="Names of the catalogues to read. Empty: all of them, which also notices removed ones.",
    )


def _table(names: Names, table: str, description: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        names.key(table),
        deps=[names.key("prompt_catalogue")],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"deltalake", "python"},
        metadata=table_definition(table),
        description=description,
    )


def _prompts(names: Names) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name="prompts",
        specs=[_table(names, "prompts", _ABOUT_PROMPTS), _table(names, "rejected_prompts", _ABOUT_REJECTED)],
        can_subset=False,
        check_specs=[checks.NO_REJECTED_PROMPTS.spec(names)],
    )
    def prompts(
        context: dg.AssetExecutionContext, config: RefreshConfig, nano_banana: NanoBananaResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        """Check the catalogues' rows, enter good ones in the ledger, and make a partition of each new shard."""
        with at_work(context), nano_banana.open_workspace() as workspace:
            chosen = config.catalogues or None
            report = refresh(workspace, chosen)
            planned = _plan_metadata(workspace, chosen)
            new_shards = add_shards(context.instance, names.shards, report.shards)
            shared = {MODE: mode_of(workspace), "catalogues": _listing(report)}
            prompts_metadata = shared | table_state(workspace.tables, "prompts")
            prompts_metadata |= _shards_metadata(report, new_shards) | planned
            rejected_metadata = shared | table_state(workspace.tables, "rejected_prompts")
            rejections = checks.rejected_prompts(workspace.tables)
            with workspace.ledger.database.read() as connection:
                entered = fingerprints(connection)
        # The same files give the same version: reading them again must not make every shard look out of date.
        version = dg.DataVersion(hashlib.sha256(orjson.dumps(sorted(entered.items()))).hexdigest()[:32])
        yield dg.MaterializeResult(asset_key=names.key("prompts"), metadata=prompts_metadata, data_version=version)
        yield dg.MaterializeResult(
            asset_key=names.key("rejected_prompts"),
            metadata=rejected_metadata,
            data_version=version,
            check_results=[rejections],
        )

    return prompts


def _shards_metadata(report: RefreshReport, new_shards: list[str]) -> Metadata:
    return {
        "shards": len(report.shards),
        "new_shards": len(new_shards),
        "changed_shards": len(report.changed_shards),
    }


def _plan_metadata(workspace: Workspace, names: Sequence[str] | None) -> Metadata:
    """What the next runs would make and cost, and keep it for an approval. The number is the P50, to be plotted."""
    try:
        planned = plan(workspace, names)
    except UserError as error:
        # Without a price for today nothing can be made; the catalogue is entered all the same.
        return {"plan": str(error)}
    needed = approval_of(workspace, save(workspace, planned)) == "needed"
    asked = f"\n\n**Waits for your approval**: `nanobanana approve {planned.hash}`" if needed else ""
    return {
        "plan": dg.MetadataValue.md(planned.markdown + asked),
        "images_to_make": planned.to_make,
        **money("plan_cost", round(planned.cost.p50)),
    }


def _listing(report: RefreshReport) -> dg.MarkdownMetadataValue:
    header = ("catalogue", "what happened", "new", "edited", "removed", "unchanged", "rejected rows")
    rows = [*map(_row, report.catalogues), *(_removed_row(registration) for registration in report.removed)]
    return markdown_table(header, rows, numbers=5)


def _row(report: CatalogueReport) -> tuple[str | int, ...]:
    entered = report.registration
    if entered is None:
        return report.name, "same files as last time: not read again", "", "", "", "", ""
    said = "read" if report.readable else "read in part: a file could not be"
    unchanged = entered.unchanged + entered.relabelled
    return report.name, said, entered.new, entered.edited, entered.removed, unchanged, report.rejected


def _removed_row(registration: Registration) -> tuple[str | int, ...]:
    return registration.catalogue, "its files are gone: its images stay", 0, 0, registration.removed, 0, 0
