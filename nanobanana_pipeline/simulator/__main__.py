"""`python -m nanobanana_pipeline.simulator`."""

import sys

from nanobanana_pipeline.simulator.server import main

if __name__ == "__main__":
    sys.exit(main())
