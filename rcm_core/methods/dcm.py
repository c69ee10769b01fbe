"""dCM: the discrete-time consistency option of rCM's released code (arXiv 2510.08431)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from rcm_core.config import Count, Positive, Section
from rcm_core.jvp import TangentKind
from rcm_core.losses.finite import finite_mask, keep_rows, mean_over
from rcm_core.losses.pairs import pair_loss
from rcm_core.protocols import Batch, Demands, Nets, Update
from rcm_core.samplers.times import grid_angles
from rcm_core.samplers.walks import teacher_steps
from rcm_core.terms import left_out, unit_noise
from rcm_core.trigflow import diffuse, predict_x0


class Config(Section):
    """``method:`` of ``method=dcm``."""

    points: Count
    """N: discretisation steps between noise and data."""
    skip: Count
    """k: the teacher's steps between the two sides of a pair."""
    shift: Positive
    """Of the grid in flow time (E13)."""
    solver: Literal["euler", "rotate"]
    """euler: x - dt F, as released; rotate: the step that is exact for constant data and noise (E5)."""
    consistency_weight: Positive

    @field_validator("skip")
    @classmethod
    def _fits(cls, skip: int, info: ValidationInfo) -> int:
        if skip >= info.data.get("points", skip + 1):
            raise ValueError(f"expected less than points = {info.data['points']}")
        return skip


@dataclass(frozen=True)
class DCM:
    config: Config
    demands = Demands(frozenset({"student"}), frozenset({"x0", "condition"}))

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:  # noqa: ARG002
        """f(x, t) is drawn to what it already is k teacher steps nearer to the data (E45)."""
        config, condition = self.config, batch.condition
        angles = self._angles(len(batch.x0), rng).to(batch.x0.device)
        first, last = angles[0], angles[-1]
        with torch.no_grad():
            x = diffuse(batch.x0, unit_noise(rng, batch.x0), first)
            near = teacher_steps(nets["teacher"], x, angles, condition, config.solver)
            target = predict_x0(near, last, nets["student"](near, last, condition))
            finite = finite_mask(target)
        found = predict_x0(x, first, nets["student"](keep_rows(finite, x), first, condition))
        each = pair_loss(keep_rows(finite, found), keep_rows(finite, target), "l2", 0.0)
        loss = config.consistency_weight * mean_over(finite, each)
        yield Update(("student",), loss, {"loss": loss.detach(), "nonfinite": left_out(finite)})

    def _angles(self, size: int, rng: torch.Generator) -> Tensor:
        """``[k + 1, B]``: from a continuous start, j / N apart in unshifted flow time."""
        config = self.config
        draws = torch.rand(size, generator=rng, device=rng.device, dtype=torch.float64)
        start = 1 - draws * (1 - config.skip / config.points)
        steps = torch.arange(config.skip + 1, device=rng.device, dtype=torch.float64) / config.points
        return grid_angles(start - steps[:, None], config.shift)


def build(config: Config, tangent: TangentKind) -> DCM:  # noqa: ARG001
    """``tangent`` is accepted for the methods' common form; nothing here needs one."""
    return DCM(config)
