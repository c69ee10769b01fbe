"""REGISTRY of distillation methods: one file per method, and no other modules."""
