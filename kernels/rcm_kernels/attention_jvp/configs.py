"""Tile sizes that ship: chosen by head dimension and dtype, checked ahead of time (kernels/bench/aot.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcm_kernels.attention_jvp.problem import Tangents
from rcm_kernels.attention_jvp.tiles import INTERPRETED, Config, padded

INTERPRETER = Config(16, 16, 4, 1)
"""In the interpreter a tile costs milliseconds whatever its size; small ones show ragged edges."""


class Case(NamedTuple):
    """What a configuration depends on."""

    dim: int
    """Of queries and keys."""
    width: int
    """Of values."""
    kind: str
    """fp32, bf16 or fp16."""
    moved: str
    """Which of q, k, v have a tangent, as in "q" or "qkv"."""


KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def case_of(q: Tensor, v: Tensor, tangents: Tangents) -> Case:
    """The case of inputs [b, h, n, d] and [b, g, m, e]."""
    moved = "".join(name for name, x in zip("qkv", tangents) if x is not None)
    return Case(q.shape[-1], v.shape[-1], KINDS[q.dtype], moved)


def forward_config(case: Case) -> Config:
    """For ``forward_kernel``: the largest tile that spills nothing on sm_90 (kernels/bench/aot.py).

    Rows whose width is no multiple of 16 are read in smaller pieces, which takes registers.
    """
    if INTERPRETED:
        return INTERPRETER
    size, moved, aligned = _size(case), len(case.moved), case.dim % 16 == 0 == case.width % 16
    if case.kind == "fp32":  # products without tensor cores
        return Config(32, 32, 8, 1) if moved < 2 and size <= 64 else Config(16, 16, 8, 1)
    if size <= 64:
        return Config(128, 64, 8, 3) if aligned else Config(64, 32, 4, 2)
    if size <= 128:
        if not moved:
            return Config(128, 64, 8, 2)
        if not aligned:
            return Config(64, 32, 8, 2) if moved == 1 else Config(16, 32, 4, 2)
        return Config(64, 64, 8, 2) if moved == 1 and case.dim == size else Config(64, 32, 8, 2)
    return (Config(64, 32, 8, 2), Config(32, 64, 8, 2), Config(16, 64, 8, 2))[min(moved, 2)]


def backward_config(case: Case) -> Config:
    """For both kernels of the gradient, by the same rule."""
    if INTERPRETED:
        return INTERPRETER
    size, aligned = _size(case), case.dim % 16 == 0 == case.width % 16
    if case.kind == "fp32":
        return Config(32, 32, 8, 1)
    if size <= 64:
        return Config(64, 64, 4, 2)
    if size <= 128:
        return Config(64, 64, 8, 2) if aligned else Config(64, 32, 8, 1)
    return Config(32, 32, 4, 1)


def _size(case: Case) -> int:
    return max(padded(case.dim), padded(case.width))
