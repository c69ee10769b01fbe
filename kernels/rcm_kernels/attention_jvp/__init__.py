"""Softmax attention with its tangent: O and dO in one pass (docs/maths.md, E31 and E32)."""

from rcm_kernels.attention_jvp.op import attention, attention_jvp

__all__ = ["attention", "attention_jvp"]
