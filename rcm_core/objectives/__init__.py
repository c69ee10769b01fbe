"""Terms: losses evaluated with networks, which the methods schedule. No optimiser and no schedule."""
