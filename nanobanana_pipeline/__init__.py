"""A Parquet catalogue of prompts in, image files and queryable tables out, through Dagster and the Nano Banana 2 task API."""
