"""ECT: discrete-time consistency with pairs that become closer in stages (Geng et al. 2024, arXiv 2406.14548)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rcm_core.config.base import Section
from rcm_core.config.types import Count, Positive
from rcm_core.diffusion.timesteps import log_normal_angles
from rcm_core.diffusion.trigflow import rotate
from rcm_core.jvp import TangentKind
from rcm_core.losses.regression import PairKind
from rcm_core.objectives.consistency import along_data, along_teacher
from rcm_core.objectives.discrete_consistency import Pair, pair_term
from rcm_core.protocols import Batch, MethodRequirements, Networks, Update

LARGEST_RATIO = 0.999


class Config(Section):
    """``method:`` of ``method=ect``."""

    learn_from: Literal["teacher", "data"]
    """Source of pairs. teacher: one step of its guided ODE apart; data: the same data and noise."""
    base: Annotated[float, Field(gt=1)]
    """q: in stage i the ratio of a pair's noise levels is about 1 - 1 / q^(i + 1)."""
    stage_every: Count
    """Number of iterations per stage."""
    steepness: Annotated[float, Field(ge=0)]
    """k: the gap between small noise levels is (1 + k/2) times larger."""
    p_mean: float
    """Mean of the angle distribution ln tan t ~ N(p_mean, p_std^2)."""
    p_std: Positive
    loss: Literal["l2", "huber"]
    """Loss of the difference. l2: its norm, as released; huber: pseudo-Huber (E41, E53)."""
    huber: Positive
    """Constant c of the pseudo-Huber loss (E41)."""
    slope: Positive = 0.5
    """Slope b of the mapping (E52); the published 1 for data of deviation 0.5 is 0.5 here."""


@dataclass(frozen=True)
class ECT:
    config: Config

    @property
    def requirements(self) -> MethodRequirements:
        needs = {"condition", "x0"} if self.config.learn_from == "teacher" else {"real"}
        return MethodRequirements(frozenset({"student"}), frozenset(needs))

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        """Yield the loss between f(x, t) and f at a smaller noise level, weighted by the inverse of their gap (E53)."""
        config = self.config
        t = log_normal_angles(len(batch.x0), config.p_mean, config.p_std, rng)
        if config.learn_from == "data":
            assert batch.real is not None  # guaranteed by the requirements
            states, condition = along_data(batch.real.x0, t, rng), batch.real.condition
        else:
            states, condition = along_teacher(networks, batch.x0, t, batch.condition, rng), batch.condition
        near = self.nearer(states.t, step)
        pair = Pair(states.x, states.t, rotate(states.x, states.t, near, states.direction), near)
        weight = 1 / (states.t.tan() - near.tan())
        kind: PairKind = "norm" if config.loss == "l2" else "huber"
        term = pair_term(networks, pair, condition, (kind, config.huber), weight=weight)
        yield Update(("student",), term.loss, {"loss": term.loss.detach(), **term.scalars})

    def nearer(self, t: Tensor, step: int) -> Tensor:
        """Return the pairs' smaller angles ``[B]`` (E52): level s - s (1 - ratio)(1 + k sigmoid(-b s)), at least 0."""
        config = self.config
        ratio = min(LARGEST_RATIO, 1 - config.base ** -(step // config.stage_every + 1))
        level = t.tan()
        near = level * (1 - (1 - ratio) * (1 + config.steepness * torch.sigmoid(-config.slope * level)))
        return near.clamp(min=0.0).atan()


def build(config: Config, tangent: TangentKind) -> ECT:  # noqa: ARG001
    """Build the method; ``tangent`` is part of the methods' common signature and unused here."""
    return ECT(config)
