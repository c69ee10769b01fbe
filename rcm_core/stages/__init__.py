"""REGISTRY: the eight stages of a run; implementations only."""
