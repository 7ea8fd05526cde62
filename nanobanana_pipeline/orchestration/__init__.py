"""The Dagster face of the pipeline: assets, checks, jobs, partitions, resources, schedules and sensors."""
