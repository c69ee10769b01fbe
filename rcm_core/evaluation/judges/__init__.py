"""Judges: independent networks that look at samples; ``build`` chooses one."""
