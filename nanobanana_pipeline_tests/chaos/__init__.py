"""Kills at random moments, under faults, and the provider's own book as the judge of what became of the money."""
