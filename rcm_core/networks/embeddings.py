"""Small modules that a student has in addition to the teacher's network; never sharded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FREQUENCIES = 16
"""Number of frequencies k of the features cos k v and sin k v: smooth in v, so that time derivatives stay small (sCM,
arXiv 2410.11081, section 4.1)."""
HIDDEN = 128


def waves(value: Tensor) -> Tensor:
    """Return Fourier features ``[B, 2 FREQUENCIES]`` of ``value`` [B], of the order of 1."""
    k = torch.arange(1, FREQUENCIES + 1, device=value.device, dtype=value.dtype)
    phase = value[:, None] * k
    return torch.cat([phase.cos(), phase.sin()], 1)


def _features(value: Tensor, weight: Tensor) -> Tensor:
    """Return ``waves`` of ``value`` in the dtype of ``weight``; phases are computed in float32 or better."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    return waves(value.to(exact)).to(weight.dtype)


class Embedding(nn.Module):
    """Embedding of a second scalar input (E49): ``[B]`` to ``[B, width]``; zero at initialisation, and always at 0.

    So a student begins as its teacher, and with the value fixed at 0 it is the plain network.
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
    """``lv(t)`` of the adaptive weighting (E35): ``[B]`` from angles [B]; zero at initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * FREQUENCIES, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        value: Tensor = self.layer(_features(t, self.layer.weight))[:, 0]
        return value
