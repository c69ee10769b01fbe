"""A discriminator in latent space: trained heads on the features of a noise-conditional network (LADD, arXiv
2403.12015; SANA-Sprint, arXiv 2503.09641, section 3.3; DMD2, arXiv 2405.14867, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rcm_core.diffusion.trigflow import diffuse
from rcm_core.objectives.base import unit_noise
from rcm_core.protocols import Condition, Network, Networks, require


class Discriminator(NamedTuple):
    """Heads on the output features of ``blocks`` of ``backbone``, the frozen teacher or the fake score."""

    backbone: Network
    blocks: Sequence[int]

    def logits(
        self, networks: Networks, x0: Tensor, condition: Condition, s: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Return logits ``[B, heads, tokens]`` for clean ``x0`` [B, ...] with noise at angles ``s`` [B]."""
        return self.logits_with_noise(networks, x0, condition, s, unit_noise(rng, x0))

    def logits_with_noise(
        self, networks: Networks, x0: Tensor, condition: Condition, s: Tensor, z: Tensor
    ) -> Tensor:
        """Return ``logits`` for the noise ``z`` [B, ...]."""
        s = s.to(x0.device)
        y = diffuse(x0, z, s)
        logits: Tensor = require(networks.discriminator)(self.backbone.features(y, s, condition, self.blocks))
        return logits


@contextmanager
def freeze(*modules: nn.Module | Network) -> Iterator[None]:
    """Freeze ``modules`` in every graph that is built within the block: gradients pass through to their inputs.

    Run the backward pass within the block too, because activation checkpointing recomputes parts of the graph.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
