"""The pipeline `autumn`, beside the first: its own catalogue, account or model, by NANOBANANA_AUTUMN_… variables."""

from nanobanana_pipeline.definitions import build_defs

defs = build_defs(name="autumn")
