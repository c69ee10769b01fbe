"""Parallelism applied from outside to single-device networks, in this order: activation checkpointing, which replaces
a block's forward; context parallelism, whose hooks surround blocks and attentions; sharding with its precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from rcm_core.config.sections import ParallelSection
from rcm_core.config.workers import divide_workers
from rcm_core.device import refuse_precision
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.protocols import Family
from rcm_core.training.sending import fill_from_first_rank
from rcm_core.training.sequence import Ulysses

SAVED = (
    "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
)  # fmt: skip
"""Operators whose results "matmuls" keeps."""
PLAIN = ParallelSection(replicas=1, context=1, precision="float32", checkpointing="none", offload=())


@dataclass(frozen=True)
class Spread:
    """How all networks of a training lie over its ranks."""

    section: ParallelSection
    world: int
    mesh: DeviceMesh | None
    """Over which weights are sharded, and first replicated if it has two dimensions; None: they are whole."""
    group: dist.ProcessGroup | None
    """The ranks that share a state with this one."""

    @classmethod
    def of(cls, section: ParallelSection, world: int, device: torch.device) -> Spread:
        """A collective; InputError if ``world`` ranks do not divide so."""
        divide_workers(section, world, "training")
        refuse_precision(section.precision, device)
        group = None
        if section.context > 1:
            shape = (world // section.context, section.context)
            group = init_device_mesh(device.type, shape, mesh_dim_names=("data", "context")).get_group(
                "context"
            )
        mesh = None
        if section.replicas > 1:
            shape = (section.replicas, world // section.replicas)
            mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
        elif (
            world > 1 or section.precision != "float32" or section.offload
        ):  # what FSDP does, also for one rank
            mesh = init_device_mesh(device.type, (world,))
        return cls(section, world, mesh, group)

    def load(
        self, role: str, folder: Path, family: Family, device: torch.device, extras: Sequence[str] = (),
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> Denoiser:  # fmt: skip
        """The denoiser of the pipeline in ``folder``, spread, on ``device``; with ``weights`` if they are given.

        Where it is sharded the first rank alone reads it, tensor by tensor, and sends every rank its part.
        """
        away, frozen = role in self.section.offload, role == "teacher"
        if self.mesh is None or self.world == 1:
            denoiser = load_denoiser(folder, family, extras, torch.device("cpu") if away else device)
            if weights is not None:
                denoiser.network.load_state_dict(dict(weights))
            self.apply(
                denoiser.requires_grad_(not frozen), away
            )  # which moves block after block, if it shards
            return denoiser
        denoiser = Denoiser(family.empty_network(folder), family, family.parameterisation(folder), extras)
        self.apply(denoiser.requires_grad_(not frozen), away)
        home = torch.device("cpu") if away else device
        denoiser.network._apply(lambda t: torch.empty_like(t, device=home) if t.is_meta else t)  # type: ignore[no-untyped-call]
        fill_from_first_rank(denoiser.network, folder, family, device, weights)
        if not away:
            return denoiser.to(device)
        for module in denoiser.modules():  # has no extras, and its weights stay where they are
            module._buffers = {name: b if b is None else b.to(device) for name, b in module._buffers.items()}
        return denoiser

    def apply(self, denoiser: Denoiser, away: bool = False) -> None:
        """Checkpoints, splits and shards ``denoiser``, one unit per block of the family; ``away``: its shards are in
        the machine's memory.
        """
        checkpoint_blocks(denoiser.blocks(), self.section.checkpointing, denoiser.kept)
        if self.group is not None:
            tokens = denoiser.family.tokens
            assert tokens is not None  # refused before
            Ulysses(denoiser.network, tokens, self.group)
        if self.mesh is None:
            return
        low = self.section.precision == "bfloat16"
        policy = MixedPrecisionPolicy()
        home = CPUOffloadPolicy(pin_memory=self.mesh.device_type == "cuda") if away else OffloadPolicy()
        if low:
            denoiser.compute = torch.bfloat16
            # the time enters in float32, so what goes into a unit is not cast
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            exact = MixedPrecisionPolicy(torch.float32, torch.float32, output_dtype=torch.bfloat16)
            time = denoiser.network.get_submodule(denoiser.family.time_embedder)
            fully_shard(time, mesh=self.mesh, mp_policy=exact, offload_policy=home)
        for module in denoiser.blocks():
            fully_shard(module, mesh=self.mesh, mp_policy=policy, offload_policy=home)
        fully_shard(denoiser.network, mesh=self.mesh, mp_policy=policy, offload_policy=home)


Forward = Callable[..., Any]


def checkpoint_blocks(
    blocks: Sequence[nn.Module], kind: str, kept: Callable[[Forward], Forward] = lambda forward: forward
) -> None:
    """From now on backward makes the inside of ``blocks`` again: all of it ("blocks"), or but for the results of matrix
    products and attentions ("matmuls"). ``kept`` of a forward is what is made again.
    """
    if kind == "none":
        return
    save = {getattr(torch.ops.aten, name).default for name in SAVED if kind == "matmuls"}

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001
        return CheckpointPolicy.MUST_SAVE if operator in save else CheckpointPolicy.PREFER_RECOMPUTE

    def again(plain: Forward, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        plain = kept(plain)
        if not save:
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)
        choose = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(plain, *args, use_reentrant=False, context_fn=choose, **kwargs)

    for block in blocks:
        block.forward = partial(again, block.forward)  # type: ignore[method-assign]


def shard(denoiser: Denoiser, world: int, device: torch.device) -> None:
    """FSDP2 over all ranks, one unit per block of the family; nothing on a single rank."""
    Spread.of(PLAIN, world, device).apply(denoiser)


@torch.no_grad()
def move_towards(follower: Sequence[torch.Tensor], leader: Sequence[torch.Tensor], rate: float) -> None:
    """follower <- (1 - rate) follower + rate leader, tensor by tensor, shard by shard."""
    pairs = list(zip(follower, leader, strict=True))
    for sharded in (False, True):  # no operation takes both kinds
        some = [(f, p) for f, p in pairs if isinstance(f, DTensor) is sharded]
        if some:
            torch._foreach_lerp_([f for f, _ in some], [p for _, p in some], rate)


def reshard(module: nn.Module) -> None:
    """Frees what a forward without a backward has left gathered; nothing on a single rank.

    FSDP2 keeps the weights outside the blocks whole until the next backward. Who changes or reads weights in between
    would change or read copies that the shards know nothing of.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def of_first_rank(values: list[float], world: int, device: torch.device) -> list[float]:
    """The first rank's ``values`` on every rank; a collective."""
    if world == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return [float(v) for v in shared]


def sum_over_ranks(values: list[float], world: int, device: torch.device) -> list[float]:
    """Each value summed over the ranks, in float64; a collective."""
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(v) for v in total]


def average_gradients(module: nn.Module, world: int) -> None:
    """Gradients of what is not sharded, averaged over the ranks as FSDP does with its own; a collective."""
    if world == 1:
        return
    for p in module.parameters():
        if not isinstance(p, DTensor):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= world


def gradient_norm(module: nn.Module) -> float:
    """L2 norm of all gradients of ``module``, over all shards."""
    return math.hypot(*(_norm(kind) for kind in _gradients(module)))


def scale_gradients(module: nn.Module, factor: float) -> None:
    """Multiplies all gradients of ``module``."""
    for kind in _gradients(module):
        if kind:
            torch._foreach_mul_(kind, factor)


def _gradients(module: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Whole gradients and sharded ones: no operation takes both."""
    every = [p.grad for p in module.parameters() if p.grad is not None]
    return [g for g in every if not isinstance(g, DTensor)], [g for g in every if isinstance(g, DTensor)]


def _norm(gradients: list[torch.Tensor]) -> float:
    if not gradients:
        return 0.0
    norm = torch.nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
