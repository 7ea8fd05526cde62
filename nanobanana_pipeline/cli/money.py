"""`report`: what the work has cost and made, as pages to open in a browser."""

import click

from nanobanana_pipeline.cli.console import say


@click.command(short_help="Write the cost report and the gallery.")
def report() -> None:
    """Write the pages anew: the cost report and the gallery of every image. Costs nothing.

    Every finished run does this by itself.
    """
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.costs import publish_cost_daily
    from nanobanana_pipeline.reporting.pages import write_site
    from nanobanana_pipeline.settings import load_settings

    with Workspace.open(load_settings()) as workspace:
        publish_cost_daily(workspace)
        site = write_site(workspace)
    for page in (site.index, site.cost_report, site.gallery):
        say(page)


COMMANDS: tuple[click.Command, ...] = (report,)
