"""Shared inputs and reference implementation for the tests of the attention kernels."""

from __future__ import annotations

import torch

BACKENDS = ("reference", "chunked")
SHAPES = {
    "square": (2, 3, 8, 8, 4),
    "odd": (1, 2, 7, 13, 5),
    "cross": (2, 1, 5, 3, 8),
    "one": (1, 1, 1, 1, 1),
}


def draw(shape: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    b, h, n, m, d = SHAPES[shape]
    rng = torch.Generator().manual_seed(seed)
    sizes = [(b, h, n, d), (b, h, m, d), (b, h, m, d)]
    return tuple(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) for s in sizes)


def explicit(q, k, v, mask=None, causal=False, scale=None):
    """Compute softmax attention with differentiable elementary operations; rows without a key give zero."""
    S = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    keep = torch.ones(S.shape[-2:], dtype=torch.bool)
    if causal:
        keep = keep.tril()
    if mask is not None and mask.dtype == torch.bool:
        keep = keep & mask
    elif mask is not None:
        S = S + mask
    P = S.masked_fill(~keep, -1e300).softmax(-1) * keep.any(-1, keepdim=True)
    return P @ v


def masks(shape: str) -> dict[str, dict]:
    n, m = SHAPES[shape][2:4]
    rng = torch.Generator().manual_seed(9)
    boolean = torch.rand(n, m, generator=rng) > 0.4
    boolean[:, 0] = True
    return {
        "plain": {},
        "scale": {"scale": 0.7},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": boolean},
        "additive": {"attn_mask": torch.randn(n, m, generator=rng, dtype=torch.float64)},
        "broadcast": {"attn_mask": boolean[:, :1]},
    }


def oracle(options):
    renamed = {"attn_mask": "mask", "is_causal": "causal", "scale": "scale"}
    return lambda q, k, v: explicit(q, k, v, **{renamed[name]: value for name, value in options.items()})


CASES = [(shape, name) for shape in SHAPES for name in masks(shape)]
