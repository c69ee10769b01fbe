"""Time and memory of the kernels, alone and in whole networks."""
