"""sCM: continuous-time consistency, by distillation or from data (Lu and Song 2024, arXiv 2410.11081)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rcm_core.config.types import Positive
from rcm_core.diffusion.timesteps import log_normal_angles
from rcm_core.jvp import TangentKind
from rcm_core.losses.consistency import WarmupForm
from rcm_core.objectives.consistency import (
    Consistency,
    Limit,
    States,
    Weighting,
    along_data,
    along_teacher,
    consistency_term,
    head_of,
    ramp,
)
from rcm_core.objectives.guidance_embedding import GuidanceSection, with_scale
from rcm_core.protocols import Batch, Condition, MethodRequirements, Networks, Update


class Config(GuidanceSection):
    """``method:`` of ``method=scm``."""

    learn_from: Literal["teacher", "data"]
    """Source of the direction. teacher: sCD, along its ODE; data: sCT, along paths between real data and noise."""
    warmup: Annotated[int, Field(ge=0)]
    """Number of iterations of tangent warm-up."""
    warmup_form: WarmupForm
    limit: Limit
    """Bound of a sample's tangent: by its norm, by its RMS, or per element."""
    tangent_constant: Positive = 0.1
    """Constant c of the tangent's normalisation (E20, E54); the published 0.1 for data of deviation 0.5 is 0.2 here."""
    weighting: Weighting
    consistency_weight: Positive
    p_mean: float
    """Mean of the angle distribution ln tan t ~ N(p_mean, p_std^2)."""
    p_std: Positive

    @model_validator(mode="after")
    def _guided_by_a_teacher(self) -> Config:
        if self.learn_from == "data" and self.guidance is not None:
            raise ValueError(
                "learn_from = data has no guidance to embed; set guidance and guidance_at to null"
            )
        return self


@dataclass(frozen=True)
class SCM:
    config: Config
    tangent: TangentKind

    @property
    def requirements(self) -> MethodRequirements:
        config = self.config
        needs = {"condition", "x0"} if config.learn_from == "teacher" else {"real"}
        extras = config.embedded | head_of(config.weighting)
        return MethodRequirements(
            frozenset({"student"}), frozenset(needs), extras, guidance=config.guidance_at
        )

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        config = self.config
        t = log_normal_angles(len(batch.x0), config.p_mean, config.p_std, rng)
        states, condition = self._states(networks, batch, t, rng)
        r = ramp(step, config.warmup)
        how = Consistency(
            self.tangent, r, config.warmup_form, config.limit, config.weighting, config.tangent_constant
        )
        term = consistency_term(networks, states, condition, how)
        loss = config.consistency_weight * term.loss
        yield Update(("student",), loss, {"loss": loss.detach(), **term.scalars})

    def _states(
        self, networks: Networks, batch: Batch, t: Tensor, rng: torch.Generator
    ) -> tuple[States, Condition]:
        if self.config.learn_from == "data":
            assert batch.real is not None  # guaranteed by the requirements
            return along_data(batch.real.x0, t, rng), batch.real.condition
        condition = with_scale(self.config, batch.condition, len(t), rng)
        return along_teacher(networks, batch.x0, t, condition, rng), condition


def build(config: Config, tangent: TangentKind) -> SCM:
    return SCM(config, tangent)
