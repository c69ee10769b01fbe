"""A discrete grid of flow times between noise and data: the parameters of methods that step along it, and the
discrete consistency term along teacher steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from rcm_core.config.base import Section
from rcm_core.config.types import Count, Positive
from rcm_core.diffusion.timesteps import grid_angles
from rcm_core.diffusion.trigflow import diffuse
from rcm_core.protocols import Batch, Nets
from rcm_core.samplers.rollout import teacher_steps
from rcm_core.terms import Term, unit_noise
from rcm_core.terms.pairs import Pair, pair_term


class GridSection(Section):
    """``points`` equal steps of unshifted flow time."""

    points: Count
    """N: steps between noise and data."""
    skip: Count
    """k: how many of them lie between the two sides of a pair."""
    shift: Positive
    """Of the grid in flow time (E13)."""

    @field_validator("skip")
    @classmethod
    def _fits(cls, skip: int, info: ValidationInfo) -> int:
        if skip >= info.data.get("points", skip + 1):
            raise ValueError(f"expected less than points = {info.data['points']}")
        return skip


class DiscreteSection(GridSection):
    """The discrete-time consistency option of rCM's released code (arXiv 2510.08431)."""

    solver: Literal["euler", "rotate"]
    """euler: x - dt F, as released; rotate: the step that is exact for constant data and noise (E5)."""

    def angles(self, size: int, rng: torch.Generator) -> Tensor:
        """``[k + 1, size]``: from a continuous start, j / N apart in unshifted flow time."""
        draws = torch.rand(size, generator=rng, device=rng.device, dtype=torch.float64)
        start = 1 - draws * (1 - self.skip / self.points)
        steps = torch.arange(self.skip + 1, device=rng.device, dtype=torch.float64) / self.points
        return grid_angles(start - steps[:, None], self.shift)


def discrete_term(config: DiscreteSection, nets: Nets, batch: Batch, rng: torch.Generator) -> Term:
    """f(x, t) is drawn to what it already is k teacher steps nearer to the data (E45)."""
    angles = config.angles(len(batch.x0), rng).to(batch.x0.device)
    first, last = angles[0], angles[-1]
    x = diffuse(batch.x0, unit_noise(rng, batch.x0), first)
    near = teacher_steps(nets["teacher"], x, angles, batch.condition, config.solver)
    return pair_term(nets, Pair(x, first, near, last), batch.condition, ("l2", 0.0))
