"""Runs on other machines: the launcher that hands them out, the workers that take them, the pulse between the two."""
