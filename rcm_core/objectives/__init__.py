"""Losses evaluated with networks: what the methods schedule. No optimiser and no schedule."""
