"""The settings of a training loop, with the optimiser and the learning-rate schedule that they define."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rcm_core.config.sections import HealthSection
from rcm_core.config.workers import samples_per_rank
from rcm_core.networks.denoiser import EXTRAS
from rcm_core.training.muon import Muon


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a training loop; ``batch`` counts samples over all ranks and accumulation steps."""

    iterations: int
    batch: int
    accumulate: int
    lr: Mapping[str, float]
    clip: Mapping[str, float]
    """Maximum gradient norm by role; a role without an entry is not clipped."""
    lr_warmup: Mapping[str, int]
    """Optimiser updates of linear learning-rate warm-up by role; a role without an entry has none."""
    lr_decay: bool
    """Enables cosine decay of the learning rate to zero over the run."""
    betas: tuple[float, float]
    weight_decay: float
    ema_lengths: tuple[float, ...]
    candidate_every: int
    checkpoint_every: int
    log_every: int
    max_nonfinite: float
    seed: int
    lr_decay_from: int | None = None
    """Step from which learning rates fall as 1 / sqrt(step) (Karras et al., arXiv 2312.02696)."""
    context: int = 1
    """Size of a context-parallel group: ranks that share each sample's tokens, and so a batch."""
    eight_bit: bool = False
    """Enables torchao's 8-bit AdamW (Dettmers et al., arXiv 2110.02861)."""
    eps: float = 1e-8
    """Term that is added to the root of Adam's second moment."""
    muon: bool = False
    """Enables Muon instead of AdamW for matrices of the blocks."""
    health: HealthSection | None = None
    """Limits of the health checks; None: only ``max_nonfinite`` applies."""

    def per_rank(self, world: int) -> int:
        """Return the samples per rank and accumulation step; InputError if the batch does not divide evenly."""
        return samples_per_rank(self.batch, world // self.context, self.accumulate, "batch")

    def optimiser(self, role: str, network: nn.Module) -> torch.optim.Optimizer:
        """Build AdamW or Muon for the parameters of ``role``; parameters that are never sharded form a second group."""
        if self.muon:
            return Muon(network, self.lr[role], self.betas, self.weight_decay, self.eps)
        named = list(network.named_parameters())
        groups = [
            [p for name, p in named if not name.startswith(EXTRAS)],
            [p for name, p in named if name.startswith(EXTRAS)],
        ]
        parameters = [{"params": group} for group in groups if group]
        options: dict[str, Any] = {
            "lr": self.lr[role],
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        if self.eight_bit:
            from torchao.optim import AdamW8bit

            return AdamW8bit(parameters, **options)  # type: ignore[no-any-return]
        return torch.optim.AdamW(parameters, fused=True, **options)

    def lr_factor(self, role: str, step: int, updates: int) -> float:
        """Return the factor on the learning rate of ``role`` at ``step``.

        The warm-up counts the ``updates`` of the role's optimiser; the decay counts iterations.
        """
        warmup = self.lr_warmup.get(role, 0)
        factor = min(1.0, (updates + 1) / warmup) if warmup else 1.0
        if self.lr_decay:
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.iterations))
        if self.lr_decay_from is not None:
            factor /= math.sqrt(max(1.0, step / self.lr_decay_from))
        return factor
