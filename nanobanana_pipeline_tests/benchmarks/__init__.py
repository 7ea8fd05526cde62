"""What the product costs beside what a person would write, in one interleaved run; `make bench`."""
