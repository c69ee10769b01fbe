"""Checkpoints and candidates of a training, and the thread that writes them."""
