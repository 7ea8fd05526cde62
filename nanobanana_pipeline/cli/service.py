"""`dev` and `simulator`: processes that stay until they are told to end."""

from contextlib import ExitStack

import click

from nanobanana_pipeline.cli import environment
from nanobanana_pipeline.cli.console import note


@click.command(short_help="Open Dagster's pages and daemon.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the pages.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. Whoever gets there may spend."
)
def dev(port: int, host: str) -> None:
    """Start Dagster's user interface and daemon, and stay until Ctrl-C.

    With no API key everything happens on a simulated provider, in data/demo. At the end the runs are stopped
    gracefully, and nothing is left behind.

    \b
    Examples:
      nanobanana dev                            simulated, http://127.0.0.1:3000
      NANOBANANA_API_KEY=… nanobanana dev --port 8080
    """
    from nanobanana_pipeline.orchestration.development import DagsterDev
    from nanobanana_pipeline.orchestration.resources import SIMULATOR_FOLDER
    from nanobanana_pipeline.settings import load_settings
    from nanobanana_pipeline.simulator.shared import shared_simulator

    settings = environment.show_the_sample(load_settings())
    home = environment.set_dagster_home(settings)
    log = environment.local_output(settings) / "logs" / "dev.log"
    with ExitStack() as stack:
        if settings.simulated:
            # One provider for all runs, for as long as the pages are open.
            stack.enter_context(shared_simulator(SIMULATOR_FOLDER))
            note("no NANOBANANA_API_KEY: a simulated provider stands in, and no money is spent")
        note("starting Dagster …")
        services = stack.enter_context(DagsterDev(home, host=host, port=port, log=log))
        stack.callback(note, "stopping the runs, then Dagster …")
        note(f"open {services.url} (everything is kept in {environment.local_output(settings)}); Ctrl-C ends it")
        services.wait()


@click.command(
    short_help="Run the simulated provider alone.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulator(arguments: tuple[str, ...]) -> int:
    """Run the simulated provider alone, for tests and for other programs; --help lists its options."""
    from nanobanana_pipeline.simulator.server import main

    try:
        return main(arguments)
    except SystemExit as ending:
        # The parser ends with 2 for wrong options, which has no meaning among this command's codes.
        return 1 if ending.code else 0


COMMANDS: tuple[click.Command, ...] = (dev, simulator)
