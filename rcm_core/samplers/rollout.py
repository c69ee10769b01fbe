"""ODE trajectories for training: teacher steps between given angles, student rollouts, and their time grids."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rcm_core.diffusion.timesteps import grid_angles, log_normal_angles
from rcm_core.diffusion.trigflow import NOISE_ANGLE, per_sample, rotate
from rcm_core.protocols import Condition, Velocity

Solver = Literal["euler", "rotate"]
Scheme = Literal["stratified", "fixed", "log_normal"]

TRAIN_STEPS = 1000
"""Number of train steps of the scheduler whose smallest time ends TBCM's reference route."""


class Trajectory(NamedTuple):
    """A recorded trajectory: states and velocities [n, B, ...] at descending angles ``t`` [n], and the final state."""

    x: Tensor
    t: Tensor
    F: Tensor
    end: Tensor


@torch.no_grad()
def teacher_steps(
    velocity: Velocity, x: Tensor, angles: Tensor, condition: Condition, solver: Solver
) -> Tensor:
    """Return the state at ``angles[-1]`` from ``x`` at ``angles[0]``; ``angles`` [n + 1, B] descend, one call each."""
    for t, s in pairwise(angles):
        F = velocity(x, t, condition)
        x = rotate(x, t, s, F) if solver == "rotate" else x - per_sample(t - s, x) * F
    return x


@torch.no_grad()
def record_trajectory(velocity: Velocity, noise: Tensor, angles: Tensor, condition: Condition) -> Trajectory:
    """Run the deterministic sampler (E5) from ``noise`` [B, ...] through ``angles`` [n] to data and record it."""
    x, states, velocities = noise, [], []
    for i in range(len(angles)):
        t = angles[i].expand(len(x))
        s = angles[i + 1].expand(len(x)) if i + 1 < len(angles) else torch.zeros_like(t)
        F = velocity(x, t, condition)
        states.append(x)
        velocities.append(F)
        x = rotate(x, t, s, F)
    return Trajectory(torch.stack(states), angles, torch.stack(velocities), x)


def reference_route(count: int, shift: float) -> Tensor:
    """Return ``[count]`` descending angles from pi/2, equally spaced in a flow time that is shifted twice (E47).

    This follows the released TBCM, which follows diffusers' scheduler; with a shift of 1 the times are equally spaced.
    """
    last = shift / TRAIN_STEPS / (1 + (shift - 1) / TRAIN_STEPS)
    return grid_angles(torch.linspace(1.0, last, count, dtype=torch.float64), shift)


def route_angles(
    scheme: Scheme, count: int, shift: float, mean: float, std: float, rng: torch.Generator
) -> Tensor:
    """Return ``[count]`` descending angles of one route from pi/2, on the generator's device.

    stratified: each angle uniform between its neighbours in the reference; fixed: the reference; log_normal: sorted
    draws with ln tan t ~ N(mean, std^2).
    """
    if scheme == "log_normal":
        draws = log_normal_angles(count - 1, mean, std, rng).sort(descending=True).values
        return torch.cat([draws.new_full((1,), NOISE_ANGLE), draws])
    reference = reference_route(count, shift).to(rng.device)
    if scheme == "fixed":
        return reference
    share = torch.rand(count - 1, generator=rng, device=rng.device, dtype=torch.float64)
    inner = reference[1:] + share * (reference[:-1] - reference[1:])
    return torch.cat([reference[:1], inner])


def random_schedule(count: int, low: float, high: float, shift: float, rng: torch.Generator) -> Tensor:
    """Return ``[count]`` descending angles: pi/2, then sorted uniform flow times in [low, high], shifted (CDM, arXiv
    2605.06376).
    """
    draws = torch.rand(count - 1, generator=rng, device=rng.device, dtype=torch.float64)
    inner = (low + (high - low) * draws).sort(descending=True).values
    return grid_angles(torch.cat([inner.new_ones(1), inner]), shift)
