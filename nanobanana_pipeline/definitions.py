"""What Dagster loads: the definitions as `orchestration` puts them together. Nothing else belongs here.

To swap a part, in a test or another deployment, make a module like this one that gives `build_defs` other arguments.
"""

from nanobanana_pipeline.orchestration.definitions import build_defs

__all__ = ["build_defs", "defs"]

defs = build_defs()
