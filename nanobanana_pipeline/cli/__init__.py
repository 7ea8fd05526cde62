"""The `nanobanana` command: thin, each command a few lines over the packages below.

A command imports what it needs when it runs, so that `nanobanana --help` is there at once.
"""

from nanobanana_pipeline.cli.main import main, program

__all__ = ["main", "program"]
