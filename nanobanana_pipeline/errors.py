"""The one exception that is meant for a person's eyes.

Everything a user can cause (a bad path, a wrong key, a torn file) is raised as a `UserError`; the command line prints
its message as a single line and exits with 1. Anything else that escapes is a defect of ours.
"""

import errno
import os
import re
import sqlite3
from typing import Final

_ROOM: Final = "make room"
_ACCESS: Final = "give access"
_THEIR_DISK: Final = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _ACCESS,
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ENAMETOOLONG: "give a shorter name",
}
"""What a person can do about it."""
# The second is what SQLite says when there is no room for the files beside its own.
_OF_SQLITE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
# Delta is written in Rust, whose errors arrive without a number of their own.
_OF_RUST: Final = re.compile(r"\(os error (\d+)\)")


class UserError(Exception):
    """One line for the user: what went wrong, where, and what to do about it."""

    def __init__(self, message: str) -> None:
        # One line by construction: a provider's HTML or a driver's stack must not spill over a terminal.
        super().__init__(" ".join(message.split()))


def disk_trouble(error: Exception) -> UserError | None:
    """What to say of a disk that is full, can't be written to or takes no such name; None for any other trouble."""
    # SQLite's own, the ledger's as Dagster's, comes wrapped by SQLAlchemy.
    of_sqlite: Exception = getattr(error, "orig", error)
    if getattr(of_sqlite, "sqlite_errorcode", 0) & 0xFF in _OF_SQLITE:
        what, remedy = f"{of_sqlite}: the disk", f"{_ROOM} or {_ACCESS}"
    elif isinstance(error, OSError):
        said = _OF_RUST.search(str(error))
        number = error.errno or (int(said[1]) if said else 0)
        if number not in _THEIR_DISK:
            return None
        what, remedy = f"{os.strerror(number)}: {error.filename or 'the disk'}", _THEIR_DISK[number]
    else:
        return None
    return UserError(f"{what}; {remedy}, and run it again: what was paid for is in the ledger, and is finished then")
