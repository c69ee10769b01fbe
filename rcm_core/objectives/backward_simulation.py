"""Backward simulation: number of steps and angles (E27; DMD2 arXiv 2405.14867 section 4.4, rCM arXiv 2510.08431)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from rcm_core.config.base import Section
from rcm_core.config.types import Count, Positive
from rcm_core.diffusion.timesteps import (
    fixed_angles,
    log_normal_angles,
    log_normal_between,
    shifted_angles,
    shifted_between,
    simulation_angles,
)
from rcm_core.diffusion.trigflow import NOISE_ANGLE
from rcm_core.losses.denoising import ScoreError
from rcm_core.samplers.few_step import Kind, exact_angle

FlowTime = Annotated[float, Field(gt=0, lt=1)]


class SimulationSection(Section):
    """Parameters of every method with distribution matching."""

    simulation_steps: Count
    """Maximum number of simulated steps: update i simulates i mod simulation_steps + 1 steps."""
    simulation: Kind = "renoise"
    """Way from a simulated step to the next angle, as ``sampler.kind``."""
    simulation_start: Positive = NOISE_ANGLE
    """First angle of the simulation; 1.5708 means pi/2, pure noise."""
    dmd_mean: float
    """Mean of p_D: ln tan t ~ N(dmd_mean, dmd_std^2), for the simulation, the matching and the fake score."""
    dmd_std: Positive
    dmd_shift: Positive | None = None
    """Shift of p_D: uniform flow times shifted towards noise (E13) instead of the log-normal (video)."""
    matching_time_min: FlowTime | None = None
    matching_time_max: FlowTime | None = None
    """Bounds of the flow times of the matching; null: no bounds. The fake score is trained at all flow times."""
    fake_error: ScoreError = "velocity"
    """Prediction whose squared error is the fake score's loss; it determines the loss's weight over time (E55)."""
    fixed_times: tuple[float, ...] | None
    """Angles of the simulation after the first; null: random angles."""

    @field_validator("simulation_start")
    @classmethod
    def _start(cls, angle: float) -> float:
        exact = exact_angle(angle)
        if exact > NOISE_ANGLE:
            raise ValueError("expected an angle of at most pi/2, written 1.5708")
        return exact

    @field_validator("fixed_times")
    @classmethod
    def _descend(cls, times: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if times is None:
            return None
        steps = info.data.get("simulation_steps", 1)
        if len(times) < steps - 1:
            raise ValueError(f"expected at least {steps - 1} angles for simulation_steps = {steps}")
        start = info.data.get("simulation_start", NOISE_ANGLE)
        if any(later >= earlier for earlier, later in zip((start, *times), (*times, 0.0))):
            raise ValueError("expected angles that descend between simulation_start and 0")
        return times

    @model_validator(mode="after")
    def _bounds(self) -> SimulationSection:
        low, high = self.matching_time_min, self.matching_time_max
        if (low is None) != (high is None):
            raise ValueError(
                "only one of matching_time_min and matching_time_max is set; set both or neither"
            )
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"matching_time_min = {low:g} is not below matching_time_max = {high:g}; change one of them"
            )
        return self


def simulation_times(config: SimulationSection, index: int, batch: int, rng: torch.Generator) -> Tensor:
    """Return ``[n, batch]`` angles of the ``index``-th update of its kind, n = index mod simulation_steps + 1."""
    n = index % config.simulation_steps + 1
    if config.fixed_times is not None:
        return fixed_angles((config.simulation_start, *config.fixed_times[: n - 1]), batch, rng.device)
    draws = fake_score_times(config, (n - 1) * batch, rng).reshape(n - 1, batch)
    return simulation_angles(draws).clamp(max=config.simulation_start)


def matching_times(config: SimulationSection, count: int, rng: torch.Generator) -> Tensor:
    """Sample ``[count]`` angles of the matching from p_D, within the bounds if they are set."""
    low, high = config.matching_time_min, config.matching_time_max
    if low is None or high is None:
        return fake_score_times(config, count, rng)
    if config.dmd_shift is not None:
        return shifted_between(low, high, count, config.dmd_shift, rng)
    return log_normal_between(low, high, count, config.dmd_mean, config.dmd_std, rng)


def fake_score_times(config: SimulationSection, count: int, rng: torch.Generator) -> Tensor:
    """Sample ``[count]`` angles of the fake score from p_D."""
    if config.dmd_shift is not None:
        return shifted_angles(count, config.dmd_shift, rng)
    return log_normal_angles(count, config.dmd_mean, config.dmd_std, rng)
