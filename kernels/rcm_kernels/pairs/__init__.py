"""Values with their tangents, one pass each: what a transformer does besides attention and matrix products."""

from rcm_kernels.pairs.op import gated_activation, gated_residual, linear, modulated_norm, rotary

__all__ = ["gated_activation", "gated_residual", "linear", "modulated_norm", "rotary"]
