"""All methods on the same teacher, data and budgets: ``python -m scripts.compare`` (docs/results.md)."""
