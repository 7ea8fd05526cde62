"""The entry point: the list of commands, and what becomes of whatever they raise.

Exit codes: 0 done as asked; 1 could not run, one line on standard error; 3 finished, but some item needs attention;
130 and 143 stopped by SIGINT and SIGTERM. A traceback never reaches the terminal.
"""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

import click

from nanobanana_pipeline.cli import care, catalogues, looking, money, service, work
from nanobanana_pipeline.cli.console import complain
from nanobanana_pipeline.errors import UserError

STOPPED = 128
"""Added to a signal's number: the exit code of a command that it ended."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class TerminatedError(BaseException):
    """SIGTERM or SIGHUP came; not an `Exception`, so that nobody who handles failures takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="nanobanana-pipeline", message="%(prog)s %(version)s")
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
    *money.COMMANDS,
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
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader has seen enough (`nanobanana query … | head`). Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED + signal.SIGPIPE


def _run(arguments: Sequence[str] | None) -> int:  # noqa: PLR0911 - an ending each
    try:
        code = nanobanana.main(args=arguments, prog_name="nanobanana", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "nanobanana"
        complain(f"{error.format_message().rstrip('.')}; see {where} --help")
        return 1
    except click.ClickException as error:
        complain(error.format_message())
        return 1
    except UserError as error:
        complain(str(error))
        return 1
    except (click.Abort, KeyboardInterrupt):
        return STOPPED + signal.SIGINT
    except TerminatedError as ending:
        return STOPPED + ending.number
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last net: what falls in here is our defect, kept for us to read
        from nanobanana_pipeline.cli.defects import keep

        complain(
            f"this is a defect of nanobanana_pipeline ({type(error).__name__}); nothing that was paid for is lost, and "
            f"the next run goes on from there. Please report it with {keep(error)}"
        )
        return 1
    return code if isinstance(code, int) else 0


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise TerminatedError(number)
