"""LCM: latent consistency distillation with an EMA target, in discrete time (Luo et al. 2023, arXiv 2310.04378)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rcm_core.config.types import Positive
from rcm_core.diffusion.timesteps import grid_angles
from rcm_core.diffusion.trigflow import diffuse
from rcm_core.jvp import TangentKind
from rcm_core.losses.regression import PairLoss
from rcm_core.objectives.base import unit_noise
from rcm_core.objectives.discrete_consistency import GridSection, Pair, pair_term
from rcm_core.objectives.guidance_embedding import GuidanceSection, with_scale
from rcm_core.protocols import Batch, MethodRequirements, Networks, TargetUpdate, Update, require
from rcm_core.samplers.rollout import teacher_steps


class Config(GridSection, GuidanceSection):
    """``method:`` of ``method=lcm``."""

    loss: PairLoss
    huber: Positive
    """Constant c of the pseudo-Huber loss (E41)."""
    target_rate: Annotated[float, Field(gt=0, le=1)]
    """Share by which the target moves towards the student after every update; 1: the target is the student."""


@dataclass(frozen=True)
class LCM:
    config: Config

    @property
    def requirements(self) -> MethodRequirements:
        config = self.config
        follow = TargetUpdate("target", "student", config.target_rate, "student")
        return MethodRequirements(
            frozenset({"student"}),
            frozenset({"x0", "condition"}),
            config.embedded,
            guidance=config.guidance_at,
            follows=(follow,),
        )

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:  # noqa: ARG002
        """Yield the loss between f(x_n+k) and the target's f(x_n), one guided teacher step of k points away (E46)."""
        config = self.config
        condition = with_scale(config, batch.condition, len(batch.x0), rng)
        angles = self._angles(len(batch.x0), rng).to(batch.x0.device)
        first, last = angles[0], angles[-1]
        x = diffuse(batch.x0, unit_noise(rng, batch.x0), first)
        near = teacher_steps(require(networks.guided_teacher), x, angles, condition, "rotate")
        pair, loss = Pair(x, first, near, last), (config.loss, config.huber)
        term = pair_term(networks, pair, condition, loss, target=require(networks.target))
        yield Update(("student",), term.loss, {"loss": term.loss.detach(), **term.scalars})

    def _angles(self, size: int, rng: torch.Generator) -> Tensor:
        """Return ``[2, B]`` angles of two grid points, k apart."""
        config = self.config
        index = torch.randint(config.skip, config.points + 1, (size,), generator=rng, device=rng.device)
        pair = torch.stack([index, index - config.skip]).double() / config.points
        return grid_angles(pair, config.shift)


def build(config: Config, tangent: TangentKind) -> LCM:  # noqa: ARG001
    """Build the method; ``tangent`` is part of the methods' common signature and unused here."""
    return LCM(config)
