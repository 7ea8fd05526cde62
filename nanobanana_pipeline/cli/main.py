"""The entry point: the list of commands, and what becomes of whatever they raise.

Exit codes: 0 done as asked; 1 could not run, one line on standard error; 3 finished, but some item needs attention;
130 and 143 stopped by SIGINT and SIGTERM. A traceback never reaches the terminal.
"""

import atexit
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, TextIO

import click
from click.exceptions import Exit, NoArgsIsHelpError

from nanobanana_pipeline.cli import care, catalogues, looking, money, service, sharing, watching, work
from nanobanana_pipeline.cli.console import complain, note
from nanobanana_pipeline.errors import UserError, disk_trouble
from nanobanana_pipeline.ledger.outages import told

STOPPED = 128
"""Added to a signal's number: the exit code of a command that it ended."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class TerminatedError(BaseException):
    """SIGTERM or SIGHUP came; not an `Exception`, so that nobody who handles failures takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _say_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's way
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"nanobanana {version('nanobanana-pipeline')}")
        except PackageNotFoundError:
            click.echo("nanobanana, not installed: run from its source")
        context.exit()


@click.group(context_settings=_CONTEXT)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_say_version,
    help="Show the version and exit.",
)
def nanobanana() -> None:
    """Turn a catalogue of prompts into images and tables, safely and within a budget.

    \b
    Begin with:
      nanobanana demo          the whole pipeline on a sample, with no key and no cost
      nanobanana dev           Dagster's user interface
      NANOBANANA_API_KEY=… nanobanana run

    Settings come from NANOBANANA_* variables; docs/operations.md lists them.
    """


for _command in (
    *work.COMMANDS,
    *service.COMMANDS,
    *catalogues.COMMANDS,
    *looking.COMMANDS,
    *watching.COMMANDS,
    *money.COMMANDS,
    *sharing.COMMANDS,
    *care.COMMANDS,
):
    nanobanana.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None: this process's) and return its exit code."""
    if not sys.warnoptions:
        # For developers; they would scatter over a user's terminal.
        warnings.simplefilter("ignore")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Whoever started us with `nohup` wants SIGHUP to stay ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    code = _run(arguments)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not _flushed(stream):
            code = code or STOPPED + signal.SIGPIPE
    return code


def program() -> NoReturn:
    """Be this process's command, and end without Python's own clearing up.

    Arrow's threads may still have a file of a bucket to close, in Python. Clearing up, that ends such a thread in the
    middle of C++, and the process is aborted: a `repair` that was done ended so, with -6.
    """
    code = main()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # All is done: whoever asks for an end now has it, and no traceback.
        signal.signal(number, signal.SIG_IGN)
    # What libraries want done at the end; there is no public way to ask for it.
    atexit._run_exitfuncs()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    os._exit(code)


def _flushed(stream: TextIO) -> bool:
    """Whether somebody still reads it, and not `nanobanana query … | head`, or a terminal that was closed."""
    try:
        stream.flush()
    except OSError:
        # Python flushes again at its end, complains, and changes the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def _run(arguments: Sequence[str] | None) -> int:
    try:
        # Not click's own `main`, which has exit codes and messages of its own.
        with (
            told(note),
            nanobanana.make_context("nanobanana", list(sys.argv[1:] if arguments is None else arguments)) as context,
        ):
            code = nanobanana.invoke(context)
    except BaseException as error:  # noqa: BLE001 - the last net: what falls in here and is nobody's is our defect
        return _ended_by(error)
    return code if isinstance(code, int) else 0


def _ended_by(error: BaseException) -> int:
    """The exit code of a command that ended so; for most, after the one line that says why."""
    match error:
        case Exit():
            return error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return STOPPED + signal.SIGINT
        case TerminatedError():
            return STOPPED + error.number
        case BrokenPipeError():
            return STOPPED + signal.SIGPIPE
        case NoArgsIsHelpError():
            click.echo(error.format_message())
            return 0
        case click.UsageError():
            where = error.ctx.command_path if error.ctx else "nanobanana"
            complain(f"{error.format_message().rstrip('.')}; see {where} --help")
        case UserError():
            complain(str(error))
        case Exception() if (trouble := disk_trouble(error)) is not None:
            complain(str(trouble))
        case _:
            from nanobanana_pipeline.cli.defects import keep

            complain(
                f"this is a defect of nanobanana_pipeline ({type(error).__name__}); nothing that was paid for is lost, "
                f"and the next run goes on from there. Please report it with {keep(error)}"
            )
    return 1


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise TerminatedError(number)
