"""Health of a training run and early stopping. Training and evaluation both import it, never the reverse."""
