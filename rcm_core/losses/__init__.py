"""Losses as pure functions of tensors, one value per sample. Knows torch and the angle alone."""
