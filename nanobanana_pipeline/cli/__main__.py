"""`python -m nanobanana_pipeline.cli`."""

import sys

from nanobanana_pipeline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
