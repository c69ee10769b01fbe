"""Discrete-time consistency: train a prediction to match one at a smaller time, on a grid of flow times."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from rcm_core.config.base import Section
from rcm_core.config.types import Count, Positive
from rcm_core.diffusion.timesteps import grid_angles
from rcm_core.diffusion.trigflow import diffuse, predict_x0
from rcm_core.losses.masking import finite_mask, keep_rows, mean_over
from rcm_core.losses.regression import PairKind, pair_loss
from rcm_core.objectives.base import Term, left_out, unit_noise
from rcm_core.protocols import Batch, Condition, Network, Networks, require
from rcm_core.samplers.rollout import teacher_steps


class Pair(NamedTuple):
    """A state ``x`` at angles ``t`` [B], and ``near`` at smaller angles ``s`` [B] on the same path."""

    x: Tensor
    t: Tensor
    near: Tensor
    s: Tensor


def pair_term(
    networks: Networks,
    pair: Pair,
    condition: Condition,
    loss: tuple[PairKind, float],
    target: Network | None = None,
    weight: Tensor | None = None,
) -> Term:
    """Return the ``loss`` (kind and c, E41) between the student's f(x, t) and sg[f(near, s)] of ``target`` (None: the
    student), weighted per sample by ``weight`` [B].
    """
    target = target or networks.student
    with torch.no_grad():
        end = predict_x0(pair.near, pair.s, target(pair.near, pair.s, condition))
        finite = finite_mask(end)
    prediction = predict_x0(pair.x, pair.t, networks.student(keep_rows(finite, pair.x), pair.t, condition))
    each = pair_loss(keep_rows(finite, prediction), keep_rows(finite, end), *loss)
    if weight is not None:
        each = each * weight.to(each.dtype)
    return Term(mean_over(finite, each), {"nonfinite": left_out(finite)})


class GridSection(Section):
    """A grid of ``points`` equal steps in unshifted flow time."""

    points: Count
    """Number N of steps between noise and data."""
    skip: Count
    """Number k of steps between the two sides of a pair."""
    shift: Positive
    """Shift of the grid in flow time (E13)."""

    @field_validator("skip")
    @classmethod
    def _fits(cls, skip: int, info: ValidationInfo) -> int:
        if skip >= info.data.get("points", skip + 1):
            raise ValueError(f"expected less than points = {info.data['points']}")
        return skip


class DiscreteSection(GridSection):
    """The discrete-time consistency option of rCM's released code (arXiv 2510.08431)."""

    solver: Literal["euler", "rotate"]
    """Teacher step. euler: x - dt F, as released; rotate: the step that is exact for constant data and noise (E5)."""

    def angles(self, size: int, rng: torch.Generator) -> Tensor:
        """Return ``[k + 1, size]`` angles at j / N in unshifted flow time below a continuous start."""
        draws = torch.rand(size, generator=rng, device=rng.device, dtype=torch.float64)
        start = 1 - draws * (1 - self.skip / self.points)
        steps = torch.arange(self.skip + 1, device=rng.device, dtype=torch.float64) / self.points
        return grid_angles(start - steps[:, None], self.shift)


def discrete_term(config: DiscreteSection, networks: Networks, batch: Batch, rng: torch.Generator) -> Term:
    """Return the term that trains f(x, t) to match f after k teacher steps towards the data (E45)."""
    angles = config.angles(len(batch.x0), rng).to(batch.x0.device)
    first, last = angles[0], angles[-1]
    x = diffuse(batch.x0, unit_noise(rng, batch.x0), first)
    near = teacher_steps(require(networks.guided_teacher), x, angles, batch.condition, config.solver)
    return pair_term(networks, Pair(x, first, near, last), batch.condition, ("l2", 0.0))
