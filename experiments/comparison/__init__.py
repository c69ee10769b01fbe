"""Comparison of all methods on the same teacher, data and budgets: ``python -m experiments.comparison``."""
