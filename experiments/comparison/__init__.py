"""All methods on the same teacher, data and budgets: ``python -m experiments.comparison`` (docs/results.md)."""
