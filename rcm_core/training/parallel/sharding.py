"""Parallelism for single-device networks, applied in this order: activation checkpointing, which replaces a block's
forward; context parallelism, whose hooks surround blocks and attentions; sharding with mixed precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from rcm_core.config.sections import ParallelSection
from rcm_core.config.workers import divide_workers
from rcm_core.device import refuse_precision
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.protocols import Family
from rcm_core.training.parallel.activation_checkpointing import checkpoint_blocks
from rcm_core.training.parallel.sending import fill_from_first_rank
from rcm_core.training.parallel.ulysses import Ulysses

PLAIN = ParallelSection(replicas=1, context=1, precision="float32", checkpointing="none", offload=())


@dataclass(frozen=True)
class ShardingPlan:
    """Distribution of a training's networks over its ranks."""

    section: ParallelSection
    world: int
    mesh: DeviceMesh | None
    """Device mesh of FSDP, with a first dimension of replicas if it has two; None: weights are not sharded."""
    group: dist.ProcessGroup | None
    """The context-parallel group of this rank; None: no context parallelism."""

    @classmethod
    def of(cls, section: ParallelSection, world: int, device: torch.device) -> ShardingPlan:
        """Build the plan of ``section`` for ``world`` ranks; a collective. InputError if they do not divide evenly."""
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
        ):  # FSDP implements precision and offloading, on one rank too
            mesh = init_device_mesh(device.type, (world,))
        return cls(section, world, mesh, group)

    def load(
        self, role: str, folder: Path, family: Family, device: torch.device, extras: Sequence[str] = (),
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> Denoiser:  # fmt: skip
        """Load the denoiser of the pipeline in ``folder`` onto ``device`` and shard it; ``weights`` override its own.

        If it is sharded, only the first rank reads it, tensor by tensor, and broadcasts it.
        """
        away, frozen = role in self.section.offload, role == "teacher"
        if self.mesh is None or self.world == 1:
            denoiser = load_denoiser(folder, family, extras, torch.device("cpu") if away else device)
            if weights is not None:
                denoiser.network.load_state_dict(dict(weights))
            self.apply(
                denoiser.requires_grad_(not frozen), away
            )  # if it shards, this moves block after block
            return denoiser
        denoiser = Denoiser(family.empty_network(folder), family, family.parameterisation(folder), extras)
        self.apply(denoiser.requires_grad_(not frozen), away)
        home = torch.device("cpu") if away else device
        denoiser.network._apply(lambda t: torch.empty_like(t, device=home) if t.is_meta else t)  # type: ignore[no-untyped-call]
        fill_from_first_rank(denoiser.network, folder, family, device, weights)
        if not away:
            return denoiser.to(device)
        for module in denoiser.modules():  # it has no extras, and its weights stay on the CPU
            module._buffers = {name: b if b is None else b.to(device) for name, b in module._buffers.items()}
        return denoiser

    def apply(self, denoiser: Denoiser, away: bool = False) -> None:
        """Apply activation checkpointing, context parallelism and FSDP to ``denoiser``, one unit per block.

        ``away``: its shards are offloaded to CPU.
        """
        checkpoint_blocks(denoiser.blocks(), self.section.checkpointing, denoiser.wrap_forward)
        if self.group is not None:
            tokens = denoiser.family.tokens
            assert tokens is not None  # refuse_split raises first
            Ulysses(denoiser.network, tokens, self.group)
        if self.mesh is None:
            return
        low = self.section.precision == "bfloat16"
        policy = MixedPrecisionPolicy()
        home = CPUOffloadPolicy(pin_memory=self.mesh.device_type == "cuda") if away else OffloadPolicy()
        if low:
            denoiser.compute = torch.bfloat16
            # the time is float32, so inputs of units are not cast
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            exact = MixedPrecisionPolicy(torch.float32, torch.float32, output_dtype=torch.bfloat16)
            time = denoiser.network.get_submodule(denoiser.family.time_embedder)
            fully_shard(time, mesh=self.mesh, mp_policy=exact, offload_policy=home)
        for module in denoiser.blocks():
            fully_shard(module, mesh=self.mesh, mp_policy=policy, offload_policy=home)
        fully_shard(denoiser.network, mesh=self.mesh, mp_policy=policy, offload_policy=home)


def shard(denoiser: Denoiser, world: int, device: torch.device) -> None:
    """Apply FSDP2 over all ranks, one unit per block of the family; without effect on a single rank."""
    ShardingPlan.of(PLAIN, world, device).apply(denoiser)
