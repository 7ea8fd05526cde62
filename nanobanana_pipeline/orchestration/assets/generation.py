"""The assets that cost money: a shard's images, results and attempts, made by one run of the engine.

What a run does is `generation`'s; here is what Dagster hands it, what it is told, and how it learns of the end.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import dagster as dg
from dagster import DagsterExecutionInterruptedError, DagsterRunStatus

from nanobanana_pipeline.errors import UserError, disk_trouble
from nanobanana_pipeline.generation.access import Access
from nanobanana_pipeline.generation.journal import on_stderr
from nanobanana_pipeline.generation.shard_run import RunOptions, ShardReport, generate_shard
from nanobanana_pipeline.generation.stopping import RunInterruptedError
from nanobanana_pipeline.generation.tally import Tally
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline.ledger.work import ShardWork
from nanobanana_pipeline.orchestration import checks
from nanobanana_pipeline.orchestration.assets.catalogue import OWNERS
from nanobanana_pipeline.orchestration.bounds import config_fields
from nanobanana_pipeline.orchestration.failures import at_work
from nanobanana_pipeline.orchestration.launchpad import GenerationConfig
from nanobanana_pipeline.orchestration.metadata import (
    MODE,
    Metadata,
    counts_table,
    money,
    table_definition,
    table_state,
)
from nanobanana_pipeline.orchestration.names import Names
from nanobanana_pipeline.orchestration.partitions import BACKFILL_TAG
from nanobanana_pipeline.orchestration.progress import Progress, duration
from nanobanana_pipeline.orchestration.resources import NanoBananaResource, mode_of
from nanobanana_pipeline.orchestration.run_tags import RUN_SCOPE_TAG, SENT_TAG, Ended
from nanobanana_pipeline.orchestration.session import Session
from nanobanana_pipeline.reporting.approval import ApprovalNeededError, Ruling, rule_of_shard
from nanobanana_pipeline.reporting.contact_sheet import contact_sheet
from nanobanana_pipeline.reporting.costs import shard_tables, summary
from nanobanana_pipeline.reporting.draft import Wanted

GROUP: Final = "generation"
OP: Final = "generation"

_ABOUT: Final = (
    "\n\n**Costs money** with a key: about $0.045 to $0.151 an image by resolution, never more than the budget "
    "(`NANOBANANA_BUDGET_USD`). Without key and base URL it runs on the simulator, in `data/demo`, and costs nothing. "
    "What has its image costs nothing again, however often a shard is materialised.\n\n"
    "**Needs** a shard to choose: an empty workspace has none yet. Materialise `prompts` first, and they appear here. "
    "`images`, `results` and `attempts` are made together, whichever of them you choose: Dagster asks you to confirm."
)


_TABLES: Final = {
    "images": "The image files, and a table with a row for each: path, size, hash, pixels. Checked to the last pixel "
    "before they count.",
    "results": "Every item (one image wanted) with its latest state: its image, or the reason why there is none, with "
    "tokens and cost.",
    "attempts": "Every request that was made to the provider, paid or not: the ledger's view, with times, tokens, cost "
    "and errors.",
}


def _spec(names: Names, table: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        names.key(table),
        deps=[names.key("prompts")],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"deltalake", "python"},
        partitions_def=names.partitions,
        metadata=table_definition(table),
        description=_TABLES[table] + _ABOUT,
    )


@dataclass
class _Run:
    """What one run knows of itself while it works."""

    context: dg.AssetExecutionContext
    names: Names
    config: GenerationConfig
    session: Session
    reports: list[ShardReport] = field(default_factory=list)

    @cached_property
    def shard(self) -> str:
        # Kept, as Dagster reads every shard there is whenever it is asked, and progress asks each second.
        # A run for a range of partitions has no single one. One run for several shards would put its costs on each.
        context = self.context
        chosen = context.partition_keys if context.has_partition_key or context.has_partition_key_range else ()
        if len(chosen) != 1:
            raise UserError(
                f"this run is for {len(chosen)} shards, and one run makes one: materialise `prompts`, then choose "
                "shards as partitions of `images`, each with a run of its own"
            )
        return chosen[0]

    @property
    def _root(self) -> str:
        run = self.context.run
        return run.root_run_id or run.run_id

    def rule(self, workspace: Workspace) -> Ruling:
        """Whether new images may be paid for; asked before anything is sent."""
        if self.session.ruling is not None:
            return self.session.ruling
        config = self.config
        # So many in each of a backfill's shards is no pilot.
        limit = None if BACKFILL_TAG in self.context.run.tags else config.limit
        again = config.rerun is not None or config.resubmit_unknown
        root, run = (self._root, self.context.run.run_id) if again else (None, None)
        wanted = Wanted(limit, config.rerun, config.resubmit_unknown, root, run, frozenset(config.chosen_items))
        return rule_of_shard(workspace, self.shard, wanted, capped=config.max_cost_usd is not None)

    def options(self, access: Access, ruling: Ruling) -> RunOptions:
        run = self.context.run
        root = self._root
        scope = self.session.run_scope or run.tags.get(RUN_SCOPE_TAG) or run.tags.get(BACKFILL_TAG) or root
        options = RunOptions(
            run_id=run.run_id,
            root_run_id=root,
            run_scope=scope,
            account=access.account,
            limit=self.config.limit,
            rerun=self.config.rerun,
            items=self.config.chosen_items,
            resubmit_unknown=self.config.resubmit_unknown,
            allow_duplicates=self.config.allow_duplicates,
            max_cost_micros=self.config.max_cost_micros,
            plan_hash=ruling.plan_hash,
        )
        return options if ruling.refusal is None else replace(options, limit=0, rerun=None, resubmit_unknown=False)

    def observed(self, numbers: Metadata) -> None:
        """Show on the page of `results` where the run is, while it works."""
        self.context.log_event(
            dg.AssetObservation(self.names.key("results"), "at work", partition=self.shard, metadata=numbers)
        )

    def reported(self, report: ShardReport) -> None:
        self.reports.append(report)
        self.session.reported(report)

    @contextmanager
    def endings(self) -> Generator[None]:
        """Note how a run ends that is cut short, and make Dagster end it in the right way."""
        try:
            yield
        except RunInterruptedError as error:
            self._stopped()
            # Only its own interruption is a cancellation to Dagster; anything caught and returned would be a success.
            raise DagsterExecutionInterruptedError(str(error)) from None
        except UserError as error:
            self._ended(Ended.FOR_AN_APPROVAL if isinstance(error, ApprovalNeededError) else Ended.BY_AN_ERROR)
            self.session.failed(error)
            raise
        except Exception as error:
            trouble = disk_trouble(error)
            if trouble is None:
                raise
            self._ended(Ended.BY_AN_ERROR)
            self.session.failed(trouble)
            raise trouble from None

    def _ended(self, how: Ended) -> None:
        run_id = self.context.run.run_id
        self.context.instance.add_run_tags(run_id, how.of(run_id))

    def _stopped(self) -> None:
        """Note who stopped the run, unless whoever knows better has noted it already, and let it end as canceled.

        Dagster marks a run that a person stops before it tells it so. A signal from elsewhere comes unannounced, and
        Dagster would take its interruption for a failure.
        """
        run = self.context.instance.get_run_by_id(self.context.run.run_id)
        noted = run is not None and Ended.noted_on(run) is not None
        if run is not None and run.status is DagsterRunStatus.CANCELING:
            if not noted:
                self._ended(Ended.BY_A_PERSON)
            return
        if run is not None and SENT_TAG in run.tags and self.context.instance.run_will_resume(run.run_id):
            return  # its worker was told to end: another goes on with the run
        if not noted:
            self._ended(Ended.BY_A_SIGNAL)
        self.context.instance.report_run_canceling(self.context.run, "A signal asked the run to stop.")


def build_generation(names: Names, session: Session | None = None) -> dg.AssetsDefinition:
    """One pipeline's multi-asset. `session` is what all runs of this process share; None: each has its own."""

    @dg.multi_asset(
        name=OP,
        specs=[_spec(names, table) for table in _TABLES],
        can_subset=False,
        check_specs=[check.spec(names) for check in checks.SHARD_CHECKS],
        pool=names.pool,
        # No backfill policy: without one, Dagster gives each shard a run. With one of a single partition a run, it
        # gives each a run for a range, which no sensor or page finds by its partition.
        config_schema=config_fields(GenerationConfig),
    )
    def generation(
        context: dg.AssetExecutionContext, nano_banana: NanoBananaResource
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetObservation]:
        """Make the images of a shard that are missing, and write its tables. What is done already costs nothing."""
        config = GenerationConfig.of(context.op_execution_context.op_config)
        run = _Run(context, names, config, session or Session())
        context.instance.add_run_tags(context.run.run_id, names.generation_tags)
        with at_work(context), run.endings(), nano_banana.open_workspace() as workspace:
            try:
                with nullcontext() if run.session.logs_to_file else on_stderr(workspace.settings.log_format):
                    report = _generate(run, workspace, nano_banana)
            except (RunInterruptedError, UserError) as end:
                yield from _observations(run, workspace, str(end))
                raise
            with run.session.showing:
                results = _materializations(run, workspace, report)
        yield from results

    return generation


def _generate(run: _Run, workspace: Workspace, nano_banana: NanoBananaResource) -> ShardReport:
    """Make what may be made. Raises `UserError` when new images wait for a person's approval."""
    ruling = run.rule(workspace)
    report = _run_shard(run, workspace, nano_banana, ruling)
    if ruling.refusal is not None:
        raise ruling.refusal
    return report


def _run_shard(run: _Run, workspace: Workspace, nano_banana: NanoBananaResource, ruling: Ruling) -> ShardReport:
    with nano_banana.provider(workspace) as access:
        left = _left(workspace, run.shard, run.config)
        run.context.log.info("%s: %d items to do, %s, at %s", run.shard, left, access.stamp.mode, access.stamp.origin)
        progress = Progress(run.context.log.info, run.observed, left)

        def on_progress(tally: Tally) -> None:
            progress(tally)
            run.session.progressed(run.shard, tally)

        return generate_shard(
            workspace,
            run.shard,
            access.open_provider,
            run.options(access, ruling),
            stop=run.session.stop,
            on_progress=on_progress,
            on_report=run.reported,
        )


def _left(workspace: Workspace, shard: str, config: GenerationConfig) -> int:
    """Items that the run has to do with, as far as can be told before it."""
    states = config.rerun.states if config.rerun is not None else ()
    if config.resubmit_unknown:
        states = (*states, ItemState.UNKNOWN)
    found = workspace.ledger.shard_work(shard=shard)
    left = sum(work.left + sum(work.states.get(state, 0) for state in states) for work in found)
    return left if config.limit is None else min(left, config.limit + sum(_begun(work) for work in found))


def _begun(work: ShardWork) -> int:
    return sum(work.states.get(state, 0) for state in (ItemState.OPEN, ItemState.OVERDUE))


def _observations(run: _Run, workspace: Workspace, why: str) -> list[dg.AssetObservation]:
    """The numbers of a run that is cut short: its tables are written. No materialisation, as the shard is not done."""
    try:
        return [
            dg.AssetObservation(
                run.names.key("results"),
                why,
                partition=run.shard,
                metadata=_numbers(workspace, report) | table_state(workspace.tables, "results"),
            )
            for report in run.reports
        ]
    except Exception:
        run.context.log.warning("the numbers of this run can't be shown", exc_info=True)
        return []


def _materializations(run: _Run, workspace: Workspace, report: ShardReport) -> list[dg.MaterializeResult[Any]]:
    numbers = _numbers(workspace, report)
    written = checks.ShardTables.read(workspace.tables, run.shard)
    verdicts = checks.check_shard(workspace, run.shard, written)
    sheet = contact_sheet(workspace, run.shard)
    pictures: Metadata = {
        "some_images": dg.MetadataValue.md(sheet.strip),
        "contact_sheet": dg.MetadataValue.md(sheet.markdown),
    }
    if sheet.path is not None:
        pictures["larger_sheet"] = dg.MetadataValue.path(f"{workspace.output}/{sheet.path}")
    by_group, by_outcome = shard_tables(workspace, run.shard)
    costs: Metadata = {"costs": dg.MetadataValue.md(by_group), "bought": dg.MetadataValue.md(by_outcome)}
    # What a person looks for comes first.
    mode: Metadata = {MODE: numbers[MODE]}
    first: dict[str, Metadata] = {"images": mode | pictures | costs, "attempts": mode | costs}
    return [
        dg.MaterializeResult(
            asset_key=run.names.key(name),
            metadata=first.get(name, {})
            | numbers
            | table_state(workspace.tables, name, shard_rows=len(getattr(written, name))),
            check_results=checks.verdicts_on(name, run.names, verdicts),
        )
        for name in _TABLES
    ]


def _numbers(workspace: Workspace, report: ShardReport) -> Metadata:
    """What this run did and paid, and how its shard stands.

    Costs and tokens are this run's own: summed over runs they give what was spent, however often a shard is
    materialised.
    """
    tally, stands = report.tally, summary(workspace, shard=report.shard)
    return {
        MODE: mode_of(workspace),
        "images": stands.images_in_use,
        "new_images": tally.images,
        "submitted": tally.submitted,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        **money("cost", tally.cost_micros),
        **money("shard_cost", stands.cost_micros),
        **money("at_risk", stands.at_risk_micros),
        "items": counts_table(("status", "items"), stands.items),
        "failures": counts_table(("kind", "items"), stands.failures),
        "duration_s": round(report.duration_s, 1),
        "duration": duration(report.duration_s),
        "output": dg.MetadataValue.path(workspace.output),
    }
