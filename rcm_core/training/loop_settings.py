"""What a training loop needs of the parameters."""

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
    """What the loop needs of the parameters; ``batch`` counts samples over ranks and accumulation steps."""

    iterations: int
    batch: int
    accumulate: int
    lr: Mapping[str, float]
    clip: Mapping[str, float]
    """Largest gradient norm of a role's network; a role that is not in it is not clipped."""
    lr_warmup: Mapping[str, int]
    """Updates of a role's optimiser over which its rate rises linearly; a role that is not in it has no warm-up."""
    lr_decay: bool
    """Cosine to zero over the run."""
    betas: tuple[float, float]
    weight_decay: float
    ema_lengths: tuple[float, ...]
    candidate_every: int
    checkpoint_every: int
    log_every: int
    max_nonfinite: float
    seed: int
    lr_decay_from: int | None = None
    """From this step on the rates fall as 1 / sqrt(step) (Karras et al., arXiv 2312.02696)."""
    context: int = 1
    """Ranks that share a state, and so a batch."""
    eight_bit: bool = False
    """AdamW's moments in eight bits (Dettmers et al., arXiv 2110.02861), by torchao."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    muon: bool = False
    """Matrices of the blocks by Muon instead of AdamW."""
    health: HealthSection | None = None
    """None: no limit but ``max_nonfinite``."""

    def per_rank(self, world: int) -> int:
        """Samples per rank and accumulation step; InputError if the batch does not divide."""
        return samples_per_rank(self.batch, world // self.context, self.accumulate, "batch")

    def optimiser(self, role: str, network: nn.Module) -> torch.optim.Optimizer:
        """AdamW for the parameters of ``role``, or Muon; what is never sharded is a group of its own."""
        if self.muon:
            return Muon(network, self.lr[role], self.betas, self.weight_decay, self.eps)
        named = list(network.named_parameters())
        groups = [
            [p for name, p in named if not name.startswith(EXTRAS)],
            [p for name, p in named if name.startswith(EXTRAS)],
        ]
        given = [{"params": group} for group in groups if group]
        options: dict[str, Any] = {
            "lr": self.lr[role],
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        if self.eight_bit:
            from torchao.optim import AdamW8bit

            return AdamW8bit(given, **options)  # type: ignore[no-any-return]
        return torch.optim.AdamW(given, fused=True, **options)

    def lr_factor(self, role: str, step: int, updates: int) -> float:
        """Return what the learning rate of ``role`` is multiplied by at ``step``.

        The warm-up counts the ``updates`` that the role's optimiser has made, the decay iterations.
        """
        warmup = self.lr_warmup.get(role, 0)
        factor = min(1.0, (updates + 1) / warmup) if warmup else 1.0
        if self.lr_decay:
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.iterations))
        if self.lr_decay_from is not None:
            factor /= math.sqrt(max(1.0, step / self.lr_decay_from))
        return factor
