"""Predictions before a run: memory, time, disk, and whether a model can be distilled. Trains nothing."""
