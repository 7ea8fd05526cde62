"""A Parquet catalogue of prompts in, images and queryable tables out, through Dagster and the Nano Banana 2 API."""
