"""`report` and `export`: what was made, as pages to look at and as files to hand on."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanobanana_pipeline.cli.console import NEEDS_ATTENTION, counted, say, size, warn
from nanobanana_pipeline.cli.progress import counting

if TYPE_CHECKING:
    from nanobanana_pipeline.reporting.export import Format

_DAMAGED_SHOWN = 10


@click.command(short_help="Write the cost report and the gallery.")
def report() -> None:
    """Write the pages anew: the cost report and the gallery of every image. Costs nothing.

    Every finished run does this by itself. Of an output in a bucket, a link to open them is shown: it, and what it
    leads to, works for NANOBANANA_LINK_HOURS, for whoever has it.
    """
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.costs import publish_cost_daily
    from nanobanana_pipeline.reporting.pages import write_site
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    with Workspace.open(settings) as workspace:
        publish_cost_daily(workspace)
        site = write_site(workspace)
    for page in (site.index, site.cost_report, site.gallery):
        say(page)
    if site.link != site.index:
        say(f"to open in a browser, for {counted(settings.link_hours, 'hour')}: {site.link}")


@click.command(short_help="Hand out the images, with a list of what they are.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["folder", "zip", "parquet", "csv"]),
    default="folder",
    show_default=True,
    help="parquet holds the bytes in one table; csv is the list alone.",
)
@click.option(
    "--to", type=click.Path(path_type=Path), help="Where to; must not be there yet. Default: images[.FORMAT]."
)
@click.option("--catalogue", metavar="NAME", help="Only of this catalogue.")
@click.option("--campaign", metavar="NAME", help="Only of this campaign.")
def export(fmt: "Format", to: Path | None, catalogue: str | None, campaign: str | None) -> int:
    """Copy the current images out, under names that people can read, with manifest.csv. Costs nothing.

    Files are byte for byte what the provider sent, so that signed provenance (C2PA) stays valid. An image whose file is
    missing or damaged is left out and named, and the exit code is 3.

    \b
    Examples:
      nanobanana export                                     into the folder images
      nanobanana export --campaign spring --format zip --to spring.zip
      nanobanana export --format parquet --to images.parquet
    """
    from nanobanana_pipeline.cli.looking import require_ledger
    from nanobanana_pipeline.generation.workspace import Workspace
    from nanobanana_pipeline.reporting.export import export as write
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    require_ledger(settings)
    destination = to or Path("images" if fmt == "folder" else f"images.{fmt}")
    with Workspace.open(settings) as workspace, counting("images") as tick:
        done = write(workspace, destination, fmt, catalogue=catalogue, campaign=campaign, on_progress=tick)
    held = "listed" if fmt == "csv" else size(done.bytes)
    say(f"{counted(done.images, 'image')}, {held}: {done.path}")
    if not done.images and not done.damaged:
        which = f" of campaign {campaign}" if campaign is not None else ""
        warn(f"there is no image{which} to export: nanobanana status")
    if done.damaged:
        warn(f"left out, missing or damaged: {counted(len(done.damaged), 'image file')}; restore from a backup")
        for path in done.damaged[:_DAMAGED_SHOWN]:
            say(f"  {path}")
    return NEEDS_ATTENTION if done.damaged else 0


COMMANDS: tuple[click.Command, ...] = (report, export)
