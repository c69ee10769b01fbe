"""Fused value-and-tangent operators of transformers, apart from attention and matrix products."""

from rcm_kernels.pairs.op import gated_activation, gated_residual, linear, modulated_norm, rotary

__all__ = ["gated_activation", "gated_residual", "linear", "modulated_norm", "rotary"]
