"""The one exception that is meant for a person's eyes.

Everything a user can cause (a bad path, a wrong key, a torn file) is raised as a `UserError`; the command line prints
its message as a single line and exits with 1. Anything else that escapes is a defect of ours.
"""

import errno
import os
import re
from typing import Final

_THEIR_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
# Delta is written in Rust, whose errors arrive without a number of their own.
_OF_RUST: Final = re.compile(r"\(os error (\d+)\)")


class UserError(Exception):
    """One line for the user: what went wrong, where, and what to do about it."""

    def __init__(self, message: str) -> None:
        # One line by construction: a provider's HTML or a driver's stack must not spill over a terminal.
        super().__init__(" ".join(message.split()))


def disk_trouble(error: OSError) -> UserError | None:
    """What to say of a disk that is full or can't be written to; None for any other trouble."""
    said = _OF_RUST.search(str(error))
    number = error.errno or (int(said[1]) if said else 0)
    if number not in _THEIR_DISK:
        return None
    return UserError(
        f"{os.strerror(number)}: {error.filename or 'the disk'}; make room or give access, and run it again: what was "
        "paid for is in the ledger, and is finished then"
    )
