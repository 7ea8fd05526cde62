"""The assets, one module a group: catalogue, generation, reporting."""
