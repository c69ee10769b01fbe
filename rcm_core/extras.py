"""What a student or a discriminator has besides the teacher's network: small modules, never sharded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

FREQUENCIES = 16
"""Features cos k v and sin k v, k = 1 .. 16: smooth in v, so that derivatives in time stay small (sCM, arXiv
2410.11081, section 4.1)."""
HIDDEN = 128
KERNEL = 9
VIRTUAL_BATCH = 8
"""Samples that are normalised together in a head."""
EPSILON = 1e-5


def waves(value: Tensor) -> Tensor:
    """``[B, 2 FREQUENCIES]`` features of ``value`` [B], of the order of 1."""
    k = torch.arange(1, FREQUENCIES + 1, device=value.device, dtype=value.dtype)
    phase = value[:, None] * k
    return torch.cat([phase.cos(), phase.sin()], 1)


def _features(value: Tensor, weight: Tensor) -> Tensor:
    """``waves`` of ``value`` for a layer of this weight; the phases have at least float32."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    return waves(value.to(exact)).to(weight.dtype)


class Embedding(nn.Module):
    """A second scalar input (E49): ``[B]`` to ``[B, width]``, zero for every value at first, and always zero at 0.

    So a student begins as its teacher, and one whose value is fixed at 0 is the plain network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, width, bias=False)
        )
        nn.init.zeros_(self.layers[2].weight)  # type: ignore[arg-type]

    def forward(self, value: Tensor) -> Tensor:
        weight: Tensor = self.layers[0].weight  # type: ignore[assignment]
        features, zeros = (_features(v, weight) for v in (value, torch.zeros_like(value)))
        difference: Tensor = self.layers(features) - self.layers(zeros)
        return difference


class LogVariance(nn.Module):
    """``lv(t)`` of the adaptive weighting (E35): ``[B]`` from angles [B]; zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * FREQUENCIES, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        value: Tensor = self.layer(_features(t, self.layer.weight))[:, 0]
        return value


class VirtualBatchNorm(nn.Module):
    """Batch normalisation of ``[B, width, tokens]`` within groups of at most ``VIRTUAL_BATCH`` samples that follow each
    other, of sizes as equal as B allows; always by the group's own moments.
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
    """One logit per token: a pointwise convolution, a residual one over ``KERNEL`` tokens in a circle, a pointwise one,
    all of spectral norm 1 (SANA-Sprint, arXiv 2503.09641, section 3.3; after LADD, arXiv 2403.12015).
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
    """``h`` [B, width, tokens] with half a kernel of tokens at each end, in a circle of any length."""
    tokens, half = h.shape[2], KERNEL // 2
    return h[:, :, torch.arange(-half, tokens + half, device=h.device) % tokens]


class Heads(nn.Module):
    """The trained part of a discriminator: one head for each of ``count`` blocks of a network."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width) for _ in range(count))

    def forward(self, features: list[Tensor]) -> Tensor:
        """``[B, heads, tokens]`` logits."""
        return torch.stack([head(tokens) for head, tokens in zip(self.heads, features, strict=True)], 1)
