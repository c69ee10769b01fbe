"""The training loop: assembly, steps, optimisers, EMAs, probes. No formulas."""
