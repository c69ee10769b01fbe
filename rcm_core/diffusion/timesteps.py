"""Timestep distributions of training, in angles. Every draw uses an explicit generator.

Angles are float64 on the generator's device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import NOISE_ANGLE, angle_from_flow_time


def log_normal_angles(count: int, mean: float, std: float, rng: torch.Generator) -> Tensor:
    """Sample ``[count]`` angles with ln tan t ~ N(mean, std^2) (E12; sCM arXiv 2410.11081, algorithm 1)."""
    draws = torch.randn(count, generator=rng, device=rng.device, dtype=torch.float64)
    return (mean + std * draws).exp().atan()


def shift_flow_time(tau: Tensor, shift: float) -> Tensor:
    """Shift rectified-flow time towards noise by ``shift`` > 1 (E13; arXiv 2403.03206, section 5.3.2)."""
    return shift * tau / (1 + (shift - 1) * tau)


def shifted_angles(count: int, shift: float, rng: torch.Generator) -> Tensor:
    """Sample ``[count]`` angles whose flow times are uniform and then shifted by ``shift`` (E13)."""
    draws = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
    return angle_from_flow_time(shift_flow_time(draws, shift))


def log_normal_between(
    low: float, high: float, count: int, mean: float, std: float, rng: torch.Generator
) -> Tensor:
    """Sample ``log_normal_angles`` conditioned on flow times in [low, high], by inverse transform sampling."""
    logs = torch.tensor([low, high], dtype=torch.float64, device=rng.device).logit()  # ln tan t, by (E6)
    first, last = torch.special.ndtr((logs - mean) / std)
    draws = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
    normal: Tensor = torch.special.ndtri(first + (last - first) * draws)
    return (mean + std * normal).exp().atan()


def shifted_between(low: float, high: float, count: int, shift: float, rng: torch.Generator) -> Tensor:
    """Sample ``shifted_angles`` conditioned on flow times in [low, high]."""
    ends = torch.tensor([low, high], dtype=torch.float64, device=rng.device)
    first, last = shift_flow_time(ends, 1 / shift)
    draws = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
    return angle_from_flow_time(shift_flow_time(first + (last - first) * draws, shift))


def simulation_angles(draws: Tensor) -> Tensor:
    """Return ``[n, B]`` descending angles of a backward simulation from ``[n - 1, B]`` draws (E27).

    The first angle is pure noise; every draw is capped by the previous angle.
    """
    start = (
        torch.full_like(draws[:1], NOISE_ANGLE)
        if len(draws)
        else draws.new_full((1, *draws.shape[1:]), NOISE_ANGLE)
    )
    return torch.cat([start, draws]).cummin(0).values


def fixed_angles(angles: Sequence[float], batch: int, device: torch.device) -> Tensor:
    """Return ``[n, B]``, the same ``angles`` for every sample, float64."""
    return torch.tensor(angles, dtype=torch.float64, device=device)[:, None].expand(-1, batch)


def grid_angles(tau: Tensor, shift: float) -> Tensor:
    """Return angles of flow times ``tau`` shifted towards noise by ``shift`` (E13); exactly pi/2 and 0 at 1 and 0."""
    return angle_from_flow_time(shift_flow_time(tau, shift))
