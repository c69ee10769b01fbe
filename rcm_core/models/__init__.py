"""REGISTRY: one file a family of networks; implementations only."""
