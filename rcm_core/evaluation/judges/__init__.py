"""Judges: independent networks that score samples; ``build`` chooses one."""
