"""Before a run: what it will take, found by rehearsing its own code on tensors without data."""
