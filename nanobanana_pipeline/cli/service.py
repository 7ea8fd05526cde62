"""`dev`, `worker` and `simulator`: processes that stay until they are told to end."""

import os
from contextlib import ExitStack
from pathlib import Path

import click

from nanobanana_pipeline.cli import environment
from nanobanana_pipeline.cli.console import note


@click.command(short_help="Open Dagster's pages and daemon.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the pages.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. Whoever gets there may spend."
)
@click.option(
    "--workspace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Dagster's file of code locations, when there are more than this pipeline.",
)
def dev(port: int, host: str, workspace: Path | None) -> None:
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
        # Last of all: it belongs to nobody, but whoever started it may be a run of ours.
        stack.callback(_wait_for_simulator, SIMULATOR_FOLDER)
        if settings.simulated:
            # One provider for all runs, for as long as the pages are open.
            stack.enter_context(shared_simulator(SIMULATOR_FOLDER))
            note("no NANOBANANA_API_KEY: a simulated provider stands in, and no money is spent")
        note("starting Dagster …")
        services = stack.enter_context(DagsterDev(home, host=host, port=port, log=log, workspace=workspace))
        stack.callback(note, "stopping the runs, then Dagster …")
        note(f"open {services.url} (everything is kept in {environment.local_output(settings)}); Ctrl-C ends it")
        services.wait()


def _wait_for_simulator(folder: str) -> None:
    from nanobanana_pipeline.orchestration.development import unbroken
    from nanobanana_pipeline.simulator.shared import wait_for_end

    # A second, whoever is in a hurry: nothing may be left behind.
    with unbroken():
        wait_for_end(folder)


@click.command(short_help="Work on runs, on this machine, for a Dagster elsewhere.")
@click.option(
    "--processes", type=click.IntRange(1, 256), help="Runs at once. Default: one for each core that it may use."
)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Take runs of this queue only; may be given several times. A run's tag dagster-celery/queue names its queue.",
)
@click.option("--name", metavar="NAME", help="How the worker is called in logs; default: its process id.")
def worker(processes: int | None, queues: tuple[str, ...], name: str | None) -> int:
    """Take runs from the broker and work on them, until Ctrl-C or SIGTERM. One for each machine; any number of them.

    Needs the settings of the webserver and daemon, the same dagster.yaml (deploy/celery) in DAGSTER_HOME, and the
    extra `celery`. Told to end, it lets its runs stop in good order, and other workers go on with them; one that is
    killed is noticed after a minute, with the same result.

    \b
    Examples:
      nanobanana worker
      nanobanana worker --processes 8 --queue urgent --queue nanobanana
    """
    from dagster import DagsterInstance

    from nanobanana_pipeline.cli.main import STOPPED
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.orchestration.instance import opening
    from nanobanana_pipeline.settings import load_settings

    try:
        from nanobanana_pipeline.orchestration.workers.worker import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"a worker needs what is not installed ({error.name}): pip install 'nanobanana_pipeline[celery,postgres]'"
        ) from None
    settings = load_settings()
    if settings.simulated:
        raise UserError("a worker needs the settings of its Dagster: set NANOBANANA_API_KEY, or NANOBANANA_BASE_URL")
    home = environment.set_dagster_home(settings)
    with opening(home), DagsterInstance.get() as instance:
        number = serve(instance, processes=processes or _cores(), queues=queues, name=name)
    return STOPPED + number if number else 0


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


def _cores() -> int:
    """Those that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


COMMANDS: tuple[click.Command, ...] = (dev, worker, simulator)
