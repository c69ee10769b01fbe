"""Discriminator heads: trained on the features of another network, never sharded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

KERNEL = 9
VIRTUAL_BATCH = 8
"""Maximum number of samples that a head normalises together."""
EPSILON = 1e-5


class VirtualBatchNorm(nn.Module):
    """Batch normalisation of ``[B, width, tokens]`` within groups of at most ``VIRTUAL_BATCH`` consecutive samples, of
    nearly equal size; always by the group's own moments.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1))
        self.bias = nn.Parameter(torch.zeros(width, 1))

    def forward(self, h: Tensor) -> Tensor:
        normal = []
        for group in h.tensor_split(math.ceil(len(h) / VIRTUAL_BATCH)):
            variance, mean = torch.var_mean(group, (0, 2), correction=0, keepdim=True)
            normal.append((group - mean) * (variance + EPSILON).rsqrt())
        return self.weight * torch.cat(normal) + self.bias


class Head(nn.Module):
    """One logit per token: a pointwise convolution, a residual circular one over ``KERNEL`` tokens, a pointwise one,
    all with spectral normalisation (SANA-Sprint, arXiv 2503.09641, section 3.3; from LADD, arXiv 2403.12015).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(spectral_norm(nn.Conv1d(width, width, 1)), VirtualBatchNorm(width))
        self.second = nn.Sequential(spectral_norm(nn.Conv1d(width, width, KERNEL)), VirtualBatchNorm(width))
        self.last = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        h = nnf.leaky_relu(self.first(tokens.transpose(1, 2)), 0.2)
        h = (h + nnf.leaky_relu(self.second(pad_circular(h)), 0.2)) / math.sqrt(2)
        logits: Tensor = self.last(h)[:, 0]
        return logits


def pad_circular(h: Tensor) -> Tensor:
    """Pad ``h`` [B, width, tokens] circularly by half a kernel at each end, for any number of tokens."""
    tokens, half = h.shape[2], KERNEL // 2
    return h[:, :, torch.arange(-half, tokens + half, device=h.device) % tokens]


class Heads(nn.Module):
    """Discriminator heads, one for each of ``count`` blocks of a network."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width) for _ in range(count))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits ``[B, heads, tokens]``."""
        return torch.stack([head(tokens) for head, tokens in zip(self.heads, features, strict=True)], 1)
