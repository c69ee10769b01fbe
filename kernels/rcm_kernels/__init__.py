"""Kernels, each with a plain-torch reference. No configuration, no environment variables, no replacement of torch
functions on import.
"""

from rcm_kernels.attention_jvp import attention, attention_jvp

__all__ = ["attention", "attention_jvp"]
