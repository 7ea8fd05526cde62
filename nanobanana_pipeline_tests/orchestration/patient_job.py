"""A job for workers in processes of their own: it says that it has begun, and waits until it is let go."""

import time
from pathlib import Path

import dagster as dg


@dg.op
def wait_to_be_let_go(context: dg.OpExecutionContext) -> None:
    """Enter the run in the list of the folder that its tag names, and wait for a file with its id."""
    folder = Path(context.run.tags["folder"])
    with (folder / "begun").open("a") as begun:
        begun.write(f"{context.run_id}\n")
    while not (folder / context.run_id).exists():
        time.sleep(0.02)


@dg.job(executor_def=dg.in_process_executor)
def patient() -> None:
    """A job that lasts as long as a test wants."""
    wait_to_be_let_go()
