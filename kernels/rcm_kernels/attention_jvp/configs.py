"""Default tile sizes by architecture, head dimension, dtype and tangents; no timing at run time.

``tuned.json`` overrides a rule by a faster measured configuration (experiments/kernels/tune.py).
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import NamedTuple

import torch
from torch import Tensor

from rcm_kernels.attention_jvp.problem import Tangents
from rcm_kernels.dispatch import triton_interprets


class Config(NamedTuple):
    """Rows and keys of a tile, and Triton's compile options."""

    block_m: int
    block_n: int
    warps: int
    stages: int


class Case(NamedTuple):
    """The properties that a configuration depends on."""

    arch: int
    """Compute capability, for example 90; 0 in the interpreter."""
    dim: int
    """Head dimension of queries and keys."""
    width: int
    """Head dimension of values."""
    kind: str
    """Dtype: fp32, bf16 or fp16."""
    moved: str
    """Those of q, k, v that have a tangent, for example "q" or "qkv"."""
    described: bool
    """True if tiles are read through tensor descriptors, else through pointers."""

    @property
    def size(self) -> int:
        """Number of columns of the widest tile."""
        return max(pad_width(self.dim), pad_width(self.width))

    @property
    def aligned(self) -> bool:
        """True if all widths are multiples of 16; other rows are read in smaller pieces, which needs more registers."""
        return self.dim % 16 == 0 == self.width % 16


KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

INTERPRETER = Config(16, 16, 4, 1)
"""Configuration of the interpreter, where a tile of any size costs milliseconds; small tiles test ragged edges."""

DESCRIPTORS = (90, 100, 103)
"""Architectures that copy whole tiles by hardware (TMA) and have enough shared memory for them."""

SMALL = (86, 87, 89, 120, 121)
"""Architectures with 99 KiB of shared memory per block."""


def case_of(q: Tensor, v: Tensor, tangents: Tangents, describable: bool) -> Case:
    """Return the case of inputs [b, h, n, d] and [b, g, m, e]; the interpreter uses descriptors whenever possible."""
    moved = "".join(name for name, x in zip("qkv", tangents) if x is not None)
    arch, kind = _architecture(q.device), KINDS[q.dtype]
    described = describable and (arch == 0 or (arch in DESCRIPTORS and kind != "fp32"))
    return Case(arch, q.shape[-1], v.shape[-1], kind, moved, described)


def pad_width(width: int) -> int:
    """Return the smallest power of two that is at least 16 and ``width``."""
    return max(16, 1 << (width - 1).bit_length())


@cache
def _architecture(device: torch.device) -> int:
    if triton_interprets():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def forward_config(case: Case) -> Config:
    """Return the tuned configuration of ``forward_kernel``, else the largest tile without spills on sm_90
    (experiments.kernels.aot).
    """
    if case.arch == 0:
        return INTERPRETER
    return find_tuned("forward", case) or (_described_forward(case) if case.described else _forward(case))


def backward_config(case: Case) -> Config:
    """Return the configuration of both gradient kernels, by the same rule as ``forward_config``."""
    if case.arch == 0:
        return INTERPRETER
    return find_tuned("backward", case) or (_described_backward(case) if case.described else _backward(case))


def find_tuned(kernel: str, case: Case) -> Config | None:
    """Return the configuration of ``case`` in ``tuned.json``, None if it has none."""
    values = _table().get(f"sm_{case.arch}", {}).get(key_of(kernel, case))
    return Config(*values) if values else None


def key_of(kernel: str, case: Case) -> str:
    """Return the key of ``case`` in ``tuned.json``."""
    how = "descriptors" if case.described else "pointers"
    return f"{kernel} {case.dim}x{case.width} {case.kind} d({case.moved}) {how}"


@cache
def _table() -> dict[str, dict[str, list[int]]]:
    table: dict[str, dict[str, list[int]]] = json.loads(
        resources.files(__package__).joinpath("tuned.json").read_text(encoding="utf-8")
    )
    return table


def _forward(case: Case) -> Config:
    size, moved, aligned = case.size, len(case.moved), case.aligned
    if case.arch in SMALL:
        return _small(case)
    if case.kind == "fp32":  # products without tensor cores
        return Config(32, 32, 8, 1) if moved < 2 and size <= 64 else Config(16, 16, 8, 1)
    if size <= 64:
        return Config(128, 64, 8, 3) if aligned else Config(64, 32, 4, 2)
    if size > 128:
        return (Config(64, 32, 8, 2), Config(32, 64, 8, 2), Config(16, 64, 8, 2))[min(moved, 2)]
    if not moved:
        return Config(128, 64, 8, 2) if aligned else Config(64, 64, 8, 2)
    if not aligned:
        return Config(32, 32, 4, 2) if moved == 1 else Config(16, 32, 8, 2)
    if moved > 1:
        return Config(32, 32, 8, 2)
    return Config(64, 64, 8, 2) if case.dim == size else Config(64, 32, 8, 2)


def _described_forward(case: Case) -> Config:
    """Return the tile with descriptors, which is larger because hardware copies need no registers for addresses."""
    moved = min(len(case.moved), 2)
    if case.size <= 64:
        return (Config(128, 128, 8, 3), Config(128, 128, 8, 2), Config(128, 128, 8, 2))[moved]
    if case.size <= 128:
        return (Config(128, 128, 8, 2), Config(128, 64, 8, 3), Config(128, 64, 8, 2))[moved]
    return (Config(128, 64, 8, 2), Config(64, 64, 8, 1), Config(16, 64, 8, 2))[moved]


def _described_backward(case: Case) -> Config:
    if case.size > 128:
        return Config(64, 32, 8, 1)
    return Config(128, 64, 8, 2 if case.arch < 100 else 1)


def _backward(case: Case) -> Config:
    size, aligned = case.size, case.aligned
    if case.arch in SMALL:
        return _small(case)
    if case.kind == "fp32":
        return Config(32, 32, 8, 1)
    if size <= 64:
        return Config(64, 64, 8, 2)
    if size > 128:
        return Config(16, 32, 4, 1)
    return Config(64, 64, 8, 1) if aligned else Config(32, 32, 8, 1)


def _small(case: Case) -> Config:
    if case.kind == "fp32" and case.size > 32:
        return Config(16, 16, 8, 1)
    if case.kind == "fp32" or case.size > 128:
        return Config(16, 32, 4, 1)
    if case.size <= 64:
        return Config(64, 32, 4, 2)
    return Config(32, 32, 8, 1) if case.aligned else Config(16, 32, 8, 1)
