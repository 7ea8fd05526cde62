"""What is known of each model, as data: limits, sizes, tokens, prices and error codes."""
