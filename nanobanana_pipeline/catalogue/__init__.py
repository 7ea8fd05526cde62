"""Reading, checking and identifying the prompts of a Parquet catalogue."""
