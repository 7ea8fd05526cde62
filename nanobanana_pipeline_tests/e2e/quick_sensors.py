"""The project's definitions in a hurry: sensors look every three seconds, and each minute has a night."""

from nanobanana_pipeline.definitions import build_defs

defs = build_defs(sensor_interval_s=3, nightly="* * * * *")
