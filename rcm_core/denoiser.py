"""Any network of any family, seen as the TrigFlow velocity ``F(x, t, condition)``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from rcm_core.protocols import Condition, Family, Parameterisation


class Denoiser(nn.Module):
    """Wraps ``network``; states and angles go in, velocities [B, C, T, H, W] come out, both float32."""

    def __init__(self, network: nn.Module, family: Family, parameterisation: Parameterisation) -> None:
        super().__init__()
        self.network = network
        self.family = family
        self.parameterisation = parameterisation

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """``F`` at state ``x`` [B, ...] and angle ``t`` [B] (E7, E8)."""
        inputs, time = self.parameterisation.to_network(x, t)
        output = self.family.call(self.network, inputs, time, condition)
        return self.parameterisation.velocity(x, t, output)


def load_denoiser(folder: Path, family: Family) -> Denoiser:
    """The network of the pipeline in ``folder``, wrapped."""
    return Denoiser(family.load_network(folder), family, family.parameterisation(folder))
