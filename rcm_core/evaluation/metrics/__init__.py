"""REGISTRY: one file a metric; implementations only."""
