"""Parallelism applied from outside to single-device networks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rcm_core.denoiser import Denoiser


def shard(denoiser: Denoiser, world: int, device: torch.device) -> None:
    """FSDP2 over all ranks, one unit per block of the family; nothing on a single rank."""
    if world == 1:
        return
    mesh = init_device_mesh(device.type, (world,))
    for module in blocks_of(denoiser):
        fully_shard(module, mesh=mesh)
    fully_shard(denoiser.network, mesh=mesh)


def blocks_of(denoiser: Denoiser) -> list[nn.Module]:
    """The blocks of the family in order, sharded (which changes their class) or not."""
    names = set(denoiser.family.blocks)
    return [m for m in denoiser.network.modules() if names & {c.__name__ for c in type(m).__mro__}]


def sum_over_ranks(values: list[float], world: int, device: torch.device) -> list[float]:
    """Each value summed over the ranks, in float64; a collective."""
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(v) for v in total]


def gradient_norm(module: nn.Module) -> float:
    """L2 norm of all gradients of ``module``, over all shards."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    full = norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
    return float(full)
