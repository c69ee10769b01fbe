"""Fake ranks and accelerators: collectives without communication, kernels without computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from rcm_kernels.attention_jvp import op
from rcm_kernels.attention_jvp.problem import Options, Result, Tangents
from torch import Tensor

from rcm_core.errors import InputError


class FirstRank:
    """The part of execution.TrainContext that steps need."""

    rank = 0

    def __init__(self, world: int) -> None:
        self.world = world

    def resume(self) -> Path | None:
        return None

    def report(self, *given: object) -> None: ...

    def leaving(self) -> bool:
        return False

    def leave(self) -> NoReturn:
        raise AssertionError("nobody asked it to")


@contextmanager
def world_of(size: int) -> Iterator[None]:
    """Make this process rank 0 of ``size`` fake ranks. InputError if it has a real process group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # also registers the backend

    if dist.is_initialized():
        raise InputError("a plan is made in a process of its own, and this one trains; start `rcm plan` anew")
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def fused_attention(work: Callable[[int], None]) -> Iterator[None]:
    """Inside, attention with tangents holds what the Triton kernels hold: inputs, outputs, a number for each row.

    They cannot run on tensors without data, and the plain implementations, which can, form scores. ``work`` is told
    of floating-point operations: 2 for each score of a row, a key and a channel, in every product of the formulas.
    """

    def run(q: Tensor, k: Tensor, v: Tensor, tangents: Tangents, options: Options, backend: str) -> Result:  # noqa: ARG001
        moved = [x is not None for x in tangents]
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        products = 2 + sum(moved) + (moved[0] or moved[1])  # E31: S, PV; dQ K, Q dK, P dV; H V
        work(products * _product(q, k))
        tangent = None if tangents.absent else torch.empty_like(out)
        return Result(out, tangent, q.new_empty(*q.shape[:-1], 1, dtype=torch.float32))

    def back(backend: str, q: Tensor, k: Tensor, v: Tensor, *given: object) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
        work(5 * _product(q, k))
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    own = op._run, op._backward
    op._run, op._backward = run, back  # type: ignore[assignment]
    try:
        yield
    finally:
        op._run, op._backward = own


def _product(q: Tensor, k: Tensor) -> int:
    """Return the operations of q k^T; value heads have the same width."""
    return 2 * q.numel() * k.shape[-2]
