"""What a student has besides the teacher's network: small modules, never sharded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FREQUENCIES = 16
"""Features cos k v and sin k v, k = 1 .. 16: smooth in v, so that derivatives in time stay small (sCM, arXiv
2410.11081, section 4.1)."""
HIDDEN = 128


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
