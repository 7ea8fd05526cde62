"""`unknown` and `repair`: what a person decides or mends."""

import click

COMMANDS: tuple[click.Command, ...] = ()
