"""The project's definitions with sensors that look every three seconds: a test need not wait half a minute for each."""

from nanobanana_pipeline.definitions import build_defs

defs = build_defs(sensor_interval_s=3)
