"""Operations under faults on a tiny project: ``python -m experiments.operations``."""
