"""What the product costs, beside the least that it could cost and what a person would write; `make bench`."""
