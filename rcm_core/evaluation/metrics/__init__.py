"""REGISTRY of metrics: one file per metric, and no other modules."""
