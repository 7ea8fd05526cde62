"""Image files and Delta tables under the output, and SQL over them."""
