"""Losses as pure functions of tensors, one value per sample. They depend only on torch and the angle."""
