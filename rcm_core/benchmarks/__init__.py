"""REGISTRY: one file a benchmark (prompts, real images, splits); implementations only."""
