"""Servers that tests start for real: an object store, and a wire that can be cut. The provider is the simulator."""
