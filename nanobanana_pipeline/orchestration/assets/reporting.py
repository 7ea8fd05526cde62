"""The assets that people read: costs by day, the cost report, the gallery. Derived from ledger and tables; free."""

from datetime import timedelta
from functools import partial
from typing import Any, Final

import dagster as dg

from nanobanana_pipeline.orchestration import checks, previews
from nanobanana_pipeline.orchestration.assets.catalogue import OWNERS
from nanobanana_pipeline.orchestration.failures import at_work, one_line_failures
from nanobanana_pipeline.orchestration.metadata import MODE, Metadata, money, table_definition, table_state
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.orchestration.resources import NanoBananaResource, mode_of
from nanobanana_pipeline.reporting.contact_sheet import contact_sheet
from nanobanana_pipeline.reporting.costs import CostReport, daily_costs, publish_cost_daily
from nanobanana_pipeline.reporting.pages import write_cost_report, write_gallery

GROUP: Final = "reporting"

FRESHNESS: Final = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=2), fail_window=timedelta(days=8))
"""`daily_cost_report` keeps to it when it is on. Assets that cost money have none: nobody has to spend every day."""


def build_reports(names: Names) -> list[dg.AssetsDefinition]:
    """The reports of one pipeline."""
    report = partial(dg.asset, key_prefix=names.prefix, group_name=GROUP, owners=OWNERS, freshness_policy=FRESHNESS)

    @report(
        deps=[names.key(table) for table in ("images", "results", "attempts")],
        kinds={"deltalake", "python"},
        metadata=table_definition("cost_daily"),
        description="What was spent on each UTC day, by catalogue, campaign, model and resolution, and what it bought. "
        "Made anew from the ledger each time, so late answers and corrections are in it. Free.",
    )
    def cost_daily(context: dg.AssetExecutionContext, nano_banana: NanoBananaResource) -> dg.MaterializeResult[Any]:
        """Write the table anew."""
        with at_work(context), nano_banana.open_workspace() as workspace:
            costs = publish_cost_daily(workspace)
            return dg.MaterializeResult(
                metadata={
                    MODE: mode_of(workspace),
                    **_totals(costs),
                    "images": costs.totals.images,
                    "tokens": costs.totals.tokens,
                    "days": costs.days,
                    **_at_a_glance(costs),
                    **table_state(workspace.tables, "cost_daily"),
                }
            )

    @report(
        deps=[cost_daily, names.key("results")],
        kinds={"html", "python"},
        description="A page to open in a browser: what was spent, on what, what was wasted and what is at risk. One "
        "HTML file that loads nothing from elsewhere. Free.",
    )
    def cost_report(context: dg.AssetExecutionContext, nano_banana: NanoBananaResource) -> dg.MaterializeResult[Any]:
        """Write the page anew."""
        with at_work(context), nano_banana.open_workspace() as workspace:
            checks.refuse_wrong_tables(context.instance, names)
            page = write_cost_report(workspace)
            costs = daily_costs(workspace)
            return dg.MaterializeResult(
                metadata={
                    MODE: mode_of(workspace),
                    "page": dg.MetadataValue.path(page),
                    **_totals(costs),
                    **_at_a_glance(costs),
                }
            )

    @report(
        deps=[names.key("images"), names.key("results")],
        kinds={"html", "python"},
        description="A page to open in a browser: every image with its prompt, and every prompt without an image with "
        "the reason. Free.",
    )
    def gallery(context: dg.AssetExecutionContext, nano_banana: NanoBananaResource) -> dg.MaterializeResult[Any]:
        """Write the page anew."""
        with at_work(context), nano_banana.open_workspace() as workspace:
            checks.refuse_wrong_tables(context.instance, names)
            page = write_gallery(workspace)
            sheet = contact_sheet(workspace)
            return dg.MaterializeResult(
                metadata={
                    MODE: mode_of(workspace),
                    "page": dg.MetadataValue.path(page),
                    "images": sheet.images,
                    "some_images": dg.MetadataValue.md(sheet.strip),
                    "contact_sheet": dg.MetadataValue.md(sheet.markdown),
                }
            )

    return [cost_daily, _reconciliation(names), cost_report, gallery]


def _reconciliation(names: Names) -> dg.AssetsDefinition:
    spec = dg.AssetSpec(
        names.key("reconciliation"),
        deps=[names.key("attempts")],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"deltalake"},
        metadata=table_definition("reconciliation"),
        description="Every line of your invoices, held against the attempt that it is for. `nanobanana reconcile "
        "INVOICE.csv` writes it; observing it tells Dagster how many lines there are and whether any drifts. Free.",
    )

    def observe(nano_banana: NanoBananaResource) -> dg.ObserveResult:
        """Look at what the invoices said."""
        with one_line_failures(), nano_banana.open_workspace() as workspace:
            version = workspace.tables.version("reconciliation")
            verdict = checks.invoices_agree(workspace.tables)
            return dg.ObserveResult(
                asset_key=spec.key,
                data_version=dg.DataVersion("none" if version is None else str(version)),
                metadata={MODE: mode_of(workspace), **table_state(workspace.tables, "reconciliation")},
                check_results=[verdict._replace(asset_key=spec.key)],
            )

    with previews.accepted():
        return dg.multi_observable_source_asset(
            name="reconciliation", specs=[spec], check_specs=[checks.INVOICES_AGREE.spec(names)]
        )(observe)


def _totals(report: CostReport) -> Metadata:
    return {**money("cost", report.totals.cost_micros), **money("at_risk", report.totals.at_risk_micros)}


def _at_a_glance(report: CostReport) -> Metadata:
    """The report's figures, short enough to be seen without a click."""
    return {
        "spending_by_day": dg.MetadataValue.md(report.chart),
        "costs": dg.MetadataValue.md(report.table),
    }
