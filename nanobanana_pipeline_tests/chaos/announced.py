"""The `nanobanana` command, with a line on stdout once its heavy imports are done, so that kills strike work."""

import sys

from nanobanana_pipeline.cli import main
from nanobanana_pipeline.definitions import build_defs

if __name__ == "__main__":
    build_defs()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    main()
