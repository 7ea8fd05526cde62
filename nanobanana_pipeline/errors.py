"""The one exception that is meant for a person's eyes.

Everything a user can cause (a bad path, a wrong key, a torn file) is raised as a `UserError`; the command line prints
its message as a single line and exits with 1. Anything else that escapes is a defect of ours.
"""


class UserError(Exception):
    """One line for the user: what went wrong, where, and what to do about it."""

    def __init__(self, message: str) -> None:
        # One line by construction: a provider's HTML or a driver's stack must not spill over a terminal.
        super().__init__(" ".join(message.split()))
