"""Collectives over the ranks of a training, and operations on weights and gradients that may be sharded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


@torch.no_grad()
def move_towards(follower: Sequence[torch.Tensor], leader: Sequence[torch.Tensor], rate: float) -> None:
    """Set follower = (1 - rate) follower + rate leader in place, tensor by tensor and shard by shard."""
    pairs = list(zip(follower, leader, strict=True))
    for sharded in (False, True):  # torch._foreach takes only one kind at a time
        some = [(f, p) for f, p in pairs if isinstance(f, DTensor) is sharded]
        if some:
            torch._foreach_lerp_([f for f, _ in some], [p for _, p in some], rate)


def reshard(module: nn.Module) -> None:
    """Free the parameters that a forward without a backward left gathered; without effect if nothing is sharded.

    FSDP2 keeps the parameters outside the blocks gathered until the next backward. Code that reads or writes weights
    before then would use copies that are out of sync with the shards.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def of_first_rank(values: list[float], world: int, device: torch.device) -> list[float]:
    """Broadcast the first rank's ``values`` to every rank; a collective."""
    if world == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return [float(v) for v in shared]


def sum_over_ranks(values: list[float], world: int, device: torch.device) -> list[float]:
    """Sum each value over the ranks, in float64; a collective."""
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(v) for v in total]


def average_gradients(module: nn.Module, world: int) -> None:
    """Average the gradients of unsharded parameters over the ranks, as FSDP does for sharded ones; a collective."""
    if world == 1:
        return
    for p in module.parameters():
        if not isinstance(p, DTensor):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= world


def gradient_norm(module: nn.Module) -> float:
    """Return the L2 norm of all gradients of ``module``, over all shards."""
    return math.hypot(*(_norm(kind) for kind in _gradients(module)))


def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply all gradients of ``module`` by ``factor``."""
    for kind in _gradients(module):
        if kind:
            torch._foreach_mul_(kind, factor)


def _gradients(module: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return unsharded and sharded gradients separately: no operation takes both."""
    every = [p.grad for p in module.parameters() if p.grad is not None]
    return [g for g in every if not isinstance(g, DTensor)], [g for g in every if isinstance(g, DTensor)]


def _norm(gradients: list[torch.Tensor]) -> float:
    if not gradients:
        return 0.0
    norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
