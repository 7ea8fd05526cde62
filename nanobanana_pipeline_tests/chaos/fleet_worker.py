"""`nanobanana worker`, saying on a board what it is doing: `python -m …chaos.fleet_worker BOARD worker OPTIONS`."""

import sys
from pathlib import Path

from nanobanana_pipeline_tests.chaos.phases import Board, announce

if __name__ == "__main__":
    announce(Board(Path(sys.argv[1])))
    from nanobanana_pipeline.cli import main  # only now: it imports what is announced

    sys.exit(main(sys.argv[2:]))
