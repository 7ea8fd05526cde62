"""`plan`, `approve`, `report`, `reconcile` and `export`: what work would cost, did cost, and where it goes."""

import click

COMMANDS: tuple[click.Command, ...] = ()
