"""`import` and `validate`: making a catalogue, and checking it before anything is spent."""

from contextlib import nullcontext
from pathlib import Path

import click

from nanobanana_pipeline.cli.console import counted, say, say_json, warn


@click.command("import", short_help="Make a catalogue of a CSV or XLSX file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="The catalogue's name; default: the file's.")
@click.option("--replace", is_flag=True, help="Overwrite the catalogue of that name.")
def import_(file: Path, name: str | None, replace: bool) -> None:  # noqa: FBT001 - click gives flags by name
    """Make a Parquet catalogue of a CSV or XLSX file whose first row names the columns.

    `prompt` is required; several image URLs in a cell are separated by spaces or `|`. Spends nothing.

    \b
    Examples:
      nanobanana import prompts.csv
      nanobanana import "Spring campaign.xlsx" --name spring
    """
    from nanobanana_pipeline.catalogue.importing import import_table
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.settings import load_settings

    if name is not None and "/" in name:
        raise UserError(f"a catalogue can't be called {name}: choose a name without '/'")
    folder = load_settings().catalogue
    destination = folder if name is None else f"{folder.rstrip('/')}/{name.removesuffix('.parquet')}.parquet"
    report = import_table(file, destination, overwrite=replace)
    say(f"{counted(report.rows, 'row')}, columns {', '.join(report.columns)}: {report.path}")
    say("next: nanobanana validate")


@click.command(short_help="Check every row of the catalogues; spends nothing.")
@click.option("--catalogue", metavar="NAME", help="Only this catalogue.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def validate(catalogue: str | None, as_json: bool) -> None:  # noqa: FBT001 - click gives flags by name
    """Check every row of the catalogues against the model's rules. Spends and writes nothing.

    Bad rows don't stop a run: they are left out, and listed in the table rejected_prompts.
    """
    from nanobanana_pipeline.cli.looking import has_ledger
    from nanobanana_pipeline.generation.intake import check
    from nanobanana_pipeline.ledger.ledger import Ledger
    from nanobanana_pipeline.model_specs.loader import load_spec
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    spec, names = load_spec(settings.model, settings.prices), None if catalogue is None else [catalogue]
    with Ledger(settings.ledger) if has_ledger(settings) else nullcontext() as ledger:
        reports = check(settings, spec, names, ledger=ledger)
    if as_json:
        say_json(
            {
                "catalogues": [
                    {
                        "catalogue": report.name,
                        "prompts": report.prompts,
                        "items": report.items,
                        "rejected": report.rejected,
                        "rejected_by_rule": dict(report.rejected_by_rule),
                        "seems_renamed_from": report.seems_renamed,
                        "examples": [_as_dict(row) for row in report.examples],
                    }
                    for report in reports
                ]
            }
        )
        return
    if not reports:
        warn(f"there is no catalogue in {settings.catalogue}: put a Parquet file there, or `nanobanana import` one")
    for report in reports:
        prompts, images = counted(report.prompts, "prompt"), counted(report.items, "image")
        say(f"{report.name}: {prompts}, {images} wanted, {report.rejected:,} rejected")
        for rule, count in sorted(report.rejected_by_rule.items(), key=lambda entry: (-entry[1], entry[0])):
            say(f"  {count:>8,}  {rule}")
        for row in report.examples:
            say(f"  {row.message}")
        if report.rejected > len(report.examples):
            say(f"  … and {report.rejected - len(report.examples):,} more")
        if report.seems_renamed is not None:
            warn(
                f"{report.name}: most of its requests have their images under the name {report.seems_renamed}. If the "
                "file was renamed, name it back: a run refuses, unless told to pay again (--allow-duplicates)"
            )
    if rejected := sum(report.rejected for report in reports):
        warn(f"{counted(rejected, 'row')} would be rejected; the others can be run")


def _as_dict(row: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(row)  # pyright: ignore[reportArgumentType]


COMMANDS: tuple[click.Command, ...] = (import_, validate)
