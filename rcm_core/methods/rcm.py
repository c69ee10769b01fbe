"""rCM: consistency regularised by distribution matching (arXiv 2510.08431)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator

from rcm_core.config.types import Count, Positive
from rcm_core.diffusion.timesteps import log_normal_angles
from rcm_core.jvp import TangentKind
from rcm_core.losses.consistency import WarmupForm
from rcm_core.objectives.backward_simulation import (
    SimulationSection,
    fake_score_times,
    matching_times,
    simulation_times,
)
from rcm_core.objectives.consistency import Consistency, along_teacher, consistency_term, ramp
from rcm_core.objectives.discrete_consistency import DiscreteSection, discrete_term
from rcm_core.objectives.distribution_matching import fake_score_term, generate, matching_term
from rcm_core.protocols import Batch, MethodRequirements, Networks, Update


class Config(SimulationSection):
    """``method:`` of ``method=rcm``."""

    student_every: Count
    """K: after the warm-up one iteration in K updates the student, the others the fake score."""
    warmup: Annotated[int, Field(ge=0)]
    """H: number of iterations of tangent warm-up, with only the consistency term."""
    warmup_form: WarmupForm
    dmd_weight: Annotated[float, Field(ge=0)]
    """Weight of distribution matching; 0: no matching and no fake score, which is sCM."""
    consistency_weight: Positive
    """Weight of the consistency term; the published lambda is dmd_weight / consistency_weight."""
    p_mean: float
    """Mean of p_G: ln tan t ~ N(p_mean, p_std^2), for the consistency term."""
    p_std: Positive
    tangent_constant: Positive = 0.1
    """Constant c of the tangent's normalisation (E20)."""
    discrete: DiscreteSection | None = None
    """Discrete-time consistency along teacher steps, as in dCM, instead of tangent and p_G; null: the tangent."""

    @model_validator(mode="after")
    def _fake_score_learns(self) -> Config:
        if self.dmd_weight and self.student_every == 1:
            raise ValueError(
                "student_every = 1 leaves no iteration for the fake score; set student_every to 2 or more,"
                " or dmd_weight to 0"
            )
        return self


@dataclass(frozen=True)
class RCM:
    config: Config
    tangent: TangentKind

    @property
    def requirements(self) -> MethodRequirements:
        roles = {"student", "fake"} if self.config.dmd_weight else {"student"}
        return MethodRequirements(frozenset(roles), frozenset({"x0", "condition"}))

    def student_update(self, step: int) -> bool:
        after = step - self.config.warmup
        return not self.config.dmd_weight or after < 0 or after % self.config.student_every == 0

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        """Yield two losses on a student step; the backward of the first frees its graph before the second is built."""
        after = step - self.config.warmup
        cycle = after // self.config.student_every
        if not self.student_update(step):
            yield self._fake(networks, batch, after - cycle - 1, rng)
            return
        yield self._consistency(networks, batch, step, rng)
        if after >= 0 and self.config.dmd_weight:
            yield self._distribution(networks, batch, cycle, rng)

    def _consistency(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Update:
        config = self.config
        if config.discrete is None:
            t = log_normal_angles(len(batch.x0), config.p_mean, config.p_std, rng)
            states = along_teacher(networks, batch.x0, t, batch.condition, rng)
            r = ramp(step, config.warmup)
            how = Consistency(self.tangent, r, config.warmup_form, constant=config.tangent_constant)
            term = consistency_term(networks, states, batch.condition, how)
        else:
            term = discrete_term(config.discrete, networks, batch, rng)
        loss = config.consistency_weight * term.loss
        return Update(("student",), loss, {"loss": loss.detach(), **term.scalars})

    def _distribution(self, networks: Networks, batch: Batch, index: int, rng: torch.Generator) -> Update:
        angles = simulation_times(self.config, index, len(batch.x0), rng)
        t = matching_times(self.config, len(batch.x0), rng)
        generated = generate(networks, batch, angles, rng, self.config.simulation)
        term = matching_term(networks, generated, batch.condition, t, rng)
        return Update(("student",), self.config.dmd_weight * term.loss, term.scalars)

    def _fake(self, networks: Networks, batch: Batch, index: int, rng: torch.Generator) -> Update:
        angles = simulation_times(self.config, index, len(batch.x0), rng)
        t = fake_score_times(self.config, len(batch.x0), rng)
        with torch.no_grad():
            generated = generate(networks, batch, angles, rng, self.config.simulation)
        term = fake_score_term(networks, generated, batch.condition, t, rng, self.config.fake_error)
        return Update(("fake",), term.loss, {"fake_loss": term.loss.detach(), **term.scalars})


def build(config: Config, tangent: TangentKind) -> RCM:
    """Build the method; ``tangent`` has no effect on the discrete-time option."""
    return RCM(config, tangent if config.discrete is None else "exact")
