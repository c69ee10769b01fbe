"""Conversion of networks with other noise schedules to TrigFlow: two formulas each, regular on their whole range.

No formula divides by sin t: the quotient (cos t x - x0) / sin t of the usual wrappers cancels analytically, but
loses every digit near t = 0. Equation numbers are those of docs/maths.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from rcm_core.diffusion.trigflow import per_sample
from rcm_core.errors import InputError


@dataclass(frozen=True)
class TrigFlow:
    """A TrigFlow network: input x, time t, output F."""

    def to_network(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, t

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:  # noqa: ARG002
        return output

    def output(self, x: Tensor, t: Tensor, F: Tensor) -> Tensor:  # noqa: ARG002
        return F


@dataclass(frozen=True)
class RectifiedFlow:
    """A rectified-flow network: path (1 - tau) x0 + tau eps, output u = eps - x0, time ``time_scale`` tau."""

    time_scale: float = 1000.0

    def to_network(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return state and time for the network (E7)."""
        c = 1 / (t.cos() + t.sin())
        return per_sample(c, x) * x, self.time_scale * c * t.sin()

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Return the velocity F of the network's ``output`` (E8)."""
        c = 1 / (t.cos() + t.sin())
        return per_sample(c, x) * (per_sample(t.cos() - t.sin(), x) * x + output)

    def output(self, x: Tensor, t: Tensor, F: Tensor) -> Tensor:
        """Return the network output u with the velocity ``F``: the inverse of (E8)."""
        return per_sample(t.cos() + t.sin(), x) * F - per_sample(t.cos() - t.sin(), x) * x


@dataclass(frozen=True)
class EDM:
    """An EDM network: path x0 + sigma eps, preconditioned raw output, time ln(sigma) / 4 (arXiv 2206.00364,
    table 1).

    Data and state are divided by ``sigma_data``, so that the state has unit variance. The embedding ln(sigma)
    is infinite at both ends of the angle, so angles must satisfy sigma_min <= sigma_data tan t <= sigma_max.
    """

    sigma_data: float = 1.0
    sigma_min: float = 1e-4
    sigma_max: float = 1e4

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest angle that the time embedding can represent."""
        return math.atan(self.sigma_min / self.sigma_data), math.atan(self.sigma_max / self.sigma_data)

    def to_network(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return state and time for the network (E9); the preconditioned EDM input is the TrigFlow state itself."""
        low, high = self.range
        least, most = float(t.detach().min()), float(t.detach().max())
        if not (low <= least and most <= high):
            worst = least if least < low else most
            raise InputError(
                f"angle {worst:.6g} is outside [{low:.6g}, {high:.6g}], the range of this EDM "
                f"network (its time is ln tan t); start sampling at angle {high:.6g} or widen "
                "sigma_min and sigma_max"
            )
        return x, (self.sigma_data * t.tan()).log() / 4

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:  # noqa: ARG002
        """Return the velocity F of the network's ``output`` (E10)."""
        return -output

    def output(self, x: Tensor, t: Tensor, F: Tensor) -> Tensor:  # noqa: ARG002
        """Return the network output with the velocity ``F``: the inverse of (E10)."""
        return -F
