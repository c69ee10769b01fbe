"""Where on the path training looks: distributions of the angle, all from an explicit generator.

Angles are drawn in float64 on the generator's device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import NOISE_ANGLE, angle_from_flow_time


def log_normal_angles(count: int, mean: float, std: float, rng: torch.Generator) -> Tensor:
    """``[count]`` angles with ln tan t ~ N(mean, std^2) (E12; sCM arXiv 2410.11081, algorithm 1)."""
    draws = torch.randn(count, generator=rng, device=rng.device, dtype=torch.float64)
    return (mean + std * draws).exp().atan()


def shift_flow_time(tau: Tensor, shift: float) -> Tensor:
    """Rectified-flow time moved towards noise by ``shift`` > 1 (E13; arXiv 2403.03206, section 5.3.2)."""
    return shift * tau / (1 + (shift - 1) * tau)


def shifted_angles(count: int, shift: float, rng: torch.Generator) -> Tensor:
    """``[count]`` angles whose flow time is ``shift`` of a uniform draw (E13)."""
    draws = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
    return angle_from_flow_time(shift_flow_time(draws, shift))


def log_normal_between(
    low: float, high: float, count: int, mean: float, std: float, rng: torch.Generator
) -> Tensor:
    """``log_normal_angles`` given that the flow time is in [low, high], by the inverse of their distribution."""
    logs = torch.tensor([low, high], dtype=torch.float64, device=rng.device).logit()  # ln tan t, by (E6)
    first, last = torch.special.ndtr((logs - mean) / std)
    draws = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
    normal: Tensor = torch.special.ndtri(first + (last - first) * draws)
    return (mean + std * normal).exp().atan()


def shifted_between(low: float, high: float, count: int, shift: float, rng: torch.Generator) -> Tensor:
    """``shifted_angles`` given that the flow time is in [low, high]."""
    ends = torch.tensor([low, high], dtype=torch.float64, device=rng.device)
    first, last = shift_flow_time(ends, 1 / shift)
    draws = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
    return angle_from_flow_time(shift_flow_time(first + (last - first) * draws, shift))


def simulation_angles(draws: Tensor) -> Tensor:
    """``[n, B]`` descending angles of a backward simulation from ``[n - 1, B]`` draws (E27).

    Starts at pure noise; every draw is capped by the angle before it.
    """
    start = (
        torch.full_like(draws[:1], NOISE_ANGLE)
        if len(draws)
        else draws.new_full((1, *draws.shape[1:]), NOISE_ANGLE)
    )
    return torch.cat([start, draws]).cummin(0).values


def fixed_angles(angles: Sequence[float], batch: int, device: torch.device) -> Tensor:
    """``[n, B]``: the same ``angles`` for every sample, float64."""
    return torch.tensor(angles, dtype=torch.float64, device=device)[:, None].expand(-1, batch)


def grid_angles(tau: Tensor, shift: float) -> Tensor:
    """Angles of flow times ``tau`` moved towards noise by ``shift`` (E13); exactly pi/2 and 0 at 1 and 0."""
    return angle_from_flow_time(shift_flow_time(tau, shift))
