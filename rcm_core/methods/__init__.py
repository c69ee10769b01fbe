"""REGISTRY: one file a method of distillation; implementations only."""
