"""A discriminator in latent space: trained heads on the features of a network that knows the noise (LADD, arXiv
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
    """Heads on the features that leave ``blocks`` of ``backbone``, the frozen teacher or the fake score."""

    backbone: Network
    blocks: Sequence[int]

    def logits(
        self, networks: Networks, x0: Tensor, condition: Condition, s: Tensor, rng: torch.Generator
    ) -> Tensor:
        """``[B, heads, tokens]`` for clean ``x0`` [B, ...] noised to angles ``s`` [B]."""
        return self.logits_with_noise(networks, x0, condition, s, unit_noise(rng, x0))

    def logits_with_noise(
        self, networks: Networks, x0: Tensor, condition: Condition, s: Tensor, z: Tensor
    ) -> Tensor:
        """``logits`` with noise ``z`` [B, ...]."""
        s = s.to(x0.device)
        y = diffuse(x0, z, s)
        logits: Tensor = require(networks.discriminator)(self.backbone.features(y, s, condition, self.blocks))
        return logits


@contextmanager
def freeze(*modules: nn.Module | Network) -> Iterator[None]:
    """Gradients go through ``modules`` and not into them, in every graph that is built inside.

    A backward pass that makes parts of the graph again (activation checkpointing) belongs inside too.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
