"""dCM: the discrete-time consistency option of rCM's released code (arXiv 2510.08431)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rcm_core.config import Positive
from rcm_core.grid import GridSection
from rcm_core.jvp import TangentKind
from rcm_core.protocols import Batch, Demands, Nets, Update
from rcm_core.samplers.times import grid_angles
from rcm_core.samplers.walks import teacher_steps
from rcm_core.terms import unit_noise
from rcm_core.terms.pairs import Pair, pair_term
from rcm_core.trigflow import diffuse


class Config(GridSection):
    """``method:`` of ``method=dcm``."""

    solver: Literal["euler", "rotate"]
    """euler: x - dt F, as released; rotate: the step that is exact for constant data and noise (E5)."""
    consistency_weight: Positive


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
        x = diffuse(batch.x0, unit_noise(rng, batch.x0), first)
        near = teacher_steps(nets["teacher"], x, angles, condition, config.solver)
        term = pair_term(nets, Pair(x, first, near, last), condition, ("l2", 0.0))
        loss = config.consistency_weight * term.loss
        yield Update(("student",), loss, {"loss": loss.detach(), **term.scalars})

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
