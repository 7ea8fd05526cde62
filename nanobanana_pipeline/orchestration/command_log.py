"""A command's log file: what Dagster and other libraries have to say while it runs; none of it on the terminal."""

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from typing_extensions import override

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.journal import LogFormat, formatter

_LOGS_KEPT: Final = 50


class _LogFile(logging.FileHandler):
    """A file whose disk may be full: what can't be written is not worth a traceback on the terminal for each line."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        """Do without the line."""


def log_file(folder: Path, command: str) -> Path:
    """A new file for what Dagster has to say; old ones go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"can't write to {folder} ({error.strerror}): set NANOBANANA_OUTPUT to another folder"
        ) from None
    for old in sorted(folder.glob("run-*.log"))[: 1 - _LOGS_KEPT]:
        old.unlink(missing_ok=True)
    return folder / f"run-{command}.log"


@contextmanager
def logging_to(file: Path, log_format: LogFormat) -> Generator[logging.Logger]:
    """A logger for Dagster's runs that writes to `file` alone; what libraries warn of goes there, too."""
    handler = _LogFile(file)
    handler.setFormatter(formatter(log_format))
    logger = logging.getLogger("nanobanana.headless")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    logging.getLogger().addHandler(handler)
    try:
        yield logger
    finally:
        for each in (logger, logging.getLogger()):
            each.removeHandler(handler)
        with suppress(OSError):
            handler.close()
