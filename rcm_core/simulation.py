"""Backward simulation: how many steps, at which angles (E27; DMD2 arXiv 2405.14867 section 4.4, rCM arXiv
2510.08431).
"""

from __future__ import annotations

import math

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from rcm_core.config import Count, Positive, Section
from rcm_core.samplers.times import fixed_angles, log_normal_angles, shifted_angles, simulation_angles
from rcm_core.trigflow import NOISE_ANGLE


class SimulationSection(Section):
    """The parameters of every method that matches distributions."""

    simulation_steps: Count
    """Update i simulates i mod simulation_steps + 1 steps."""
    dmd_mean: float
    """p_D: ln tan t ~ N(dmd_mean, dmd_std^2), for the simulation and for the comparison of scores."""
    dmd_std: Positive
    dmd_shift: Positive | None = None
    """p_D: flow times uniform and moved towards noise by this shift (E13), in place of the log-normal (video)."""
    fixed_times: tuple[float, ...] | None
    """Angles of the simulation after pi/2, in place of random ones."""

    @field_validator("fixed_times")
    @classmethod
    def _descend(cls, times: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if times is None:
            return None
        steps = info.data.get("simulation_steps", 1)
        if len(times) < steps - 1:
            raise ValueError(f"expected at least {steps - 1} angles for simulation_steps = {steps}")
        if any(later >= earlier for earlier, later in zip((math.pi / 2, *times), (*times, 0.0))):
            raise ValueError("expected angles that descend between pi/2 and 0")
        return times


def simulated(config: SimulationSection, index: int, batch: int, rng: torch.Generator) -> Tensor:
    """``[n, batch]`` angles of the ``index``-th update of its kind, n = index mod simulation_steps + 1."""
    n = index % config.simulation_steps + 1
    if config.fixed_times is not None:
        return fixed_angles((NOISE_ANGLE, *config.fixed_times[: n - 1]), batch, rng.device)
    return simulation_angles(compared(config, (n - 1) * batch, rng).reshape(n - 1, batch))


def compared(config: SimulationSection, count: int, rng: torch.Generator) -> Tensor:
    """``[count]`` angles from p_D."""
    if config.dmd_shift is not None:
        return shifted_angles(count, config.dmd_shift, rng)
    return log_normal_angles(count, config.dmd_mean, config.dmd_std, rng)
