"""`alerts` and `metrics`: being told, and letting other programs watch; nothing is spent."""

import threading
from pathlib import Path

import click

from nanobanana_pipeline.cli.console import note, say, say_json
from nanobanana_pipeline.cli.looking import has_ledger


@click.command(short_help="What a person should hear of; --send tells them.")
@click.option("--send", is_flag=True, help="Tell of what is new, as Dagster's alert_sensor does: for cron.")
@click.option("--test", is_flag=True, help="Send a test to everyone who is told of alerts.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def alerts(send: bool, test: bool, as_json: bool) -> None:  # noqa: FBT001 - click gives flags by name
    """Show every condition that is worth an alert now: caps, failures, unknown outcomes, idle work.

    Nothing is sent without --send or --test. Then it goes to NANOBANANA_ALERT_WEBHOOK and NANOBANANA_ALERT_EMAIL, each
    crossing once, whoever looks.

    \b
    Examples:
      nanobanana alerts
      nanobanana alerts --test
      */5 * * * * nanobanana alerts --send          in a crontab, where no Dagster runs
    """
    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.ledger.ledger import Ledger
    from nanobanana_pipeline.reporting.alert_sinks import sinks_of
    from nanobanana_pipeline.reporting.alerts import Alert, conditions, tell
    from nanobanana_pipeline.reporting.alerts import send as send_now
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    sinks = sinks_of(settings)
    problems: list[str] = []
    if test:
        problems = send_now(sinks, [Alert("test/1", "This is a test: alerts arrive here.")], settings.workspace)
    holding: list[Alert] = []
    if has_ledger(settings):
        with Ledger(settings.ledger) as ledger:
            if send:
                told = tell(ledger, settings, sinks)
                holding, problems = told.holding, problems + told.problems
            else:
                holding = conditions(ledger, settings)
    if as_json:
        say_json({"alerts": [alert.as_dict() for alert in holding], "told": [sink.name for sink in sinks]})
    else:
        for alert in holding:
            say(alert.text)
    if problems:
        raise UserError("; ".join(problems))


@click.command(short_help="The figures for Prometheus.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Serve them at this port until Ctrl-C.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--textfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write them to a file for the node exporter's textfile collector; its name ends in .prom.",
)
def metrics(port: int | None, host: str, textfile: Path | None) -> None:
    """Items, money, open attempts, the throttle and latencies, as Prometheus reads them. From the ledger alone.

    Prints them once, unless told where to.

    \b
    Examples:
      nanobanana metrics
      nanobanana metrics --port 9464
      nanobanana metrics --textfile /var/lib/node_exporter/nanobanana.prom
    """
    from prometheus_client import generate_latest, start_http_server, write_to_textfile

    from nanobanana_pipeline.errors import UserError
    from nanobanana_pipeline.ledger.ledger import Ledger
    from nanobanana_pipeline.reporting.metrics import registry_of
    from nanobanana_pipeline.settings import load_settings

    settings = load_settings()
    if not has_ledger(settings):
        raise UserError(f"nothing was done in {settings.workspace} yet, so there are no figures")
    with Ledger(settings.ledger) as ledger:
        registry = registry_of(ledger, settings)
        if textfile is not None:
            try:
                write_to_textfile(str(textfile), registry)
            except OSError as error:
                raise UserError(f"{textfile} can't be written ({error.strerror}): name another --textfile") from None
        if port is not None:
            try:
                server, _ = start_http_server(port, addr=host, registry=registry)
            except OSError as error:
                raise UserError(f"can't listen on {host}:{port} ({error.strerror}): choose another --port") from None
            note(f"figures at http://{host}:{port}/metrics; Ctrl-C ends it")
            try:
                threading.Event().wait()
            finally:
                server.shutdown()
                server.server_close()
        if textfile is None and port is None:
            click.echo(generate_latest(registry), nl=False)


COMMANDS: tuple[click.Command, ...] = (alerts, metrics)
