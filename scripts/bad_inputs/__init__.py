"""Mutilated inputs through the real commands: each must end in one sentence and exit status 2."""
