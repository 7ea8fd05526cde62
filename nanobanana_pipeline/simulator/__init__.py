"""A provider for development: the same wire as the real one, its own billing book, scripted faults."""
