"""rCM: consistency regularised by distribution matching (arXiv 2510.08431)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rcm_core.config import Count, Positive
from rcm_core.jvp import TangentKind
from rcm_core.protocols import Batch, Update, Velocity
from rcm_core.samplers.times import log_normal_angles
from rcm_core.simulation import SimulationSection, simulated
from rcm_core.terms import Warmup, consistency_term, distribution_term, fake_score_term


class Config(SimulationSection):
    """``method:`` of ``method=rcm``."""

    student_every: Count
    """K: after the warm-up one iteration in K moves the student, the others the fake score."""
    warmup: Annotated[int, Field(ge=0)]
    """H: iterations of tangent warm-up, with the consistency term alone."""
    warmup_form: Literal["rcm", "scm"]
    dmd_weight: Positive
    consistency_weight: Positive
    """The published lambda is dmd_weight / consistency_weight."""
    p_mean: float
    """p_G: ln tan t ~ N(p_mean, p_std^2), for the consistency term."""
    p_std: Positive


@dataclass(frozen=True)
class RCM:
    config: Config
    tangent: TangentKind
    roles: frozenset[str] = frozenset({"student", "fake"})
    needs: frozenset[str] = frozenset({"x0", "condition"})

    def student_update(self, step: int) -> bool:
        return step < self.config.warmup or (step - self.config.warmup) % self.config.student_every == 0

    def updates(
        self, nets: Mapping[str, Velocity], batch: Batch, step: int, rng: torch.Generator
    ) -> Iterator[Update]:
        """Two losses on a student step: the first graph is freed by its backward pass before the second is
        built.
        """
        after = step - self.config.warmup
        cycle = after // self.config.student_every
        if not self.student_update(step):
            yield self._fake(nets, batch, after - cycle - 1, rng)
            return
        yield self._consistency(nets, batch, step, rng)
        if after >= 0:
            yield self._distribution(nets, batch, cycle, rng)

    def _consistency(
        self, nets: Mapping[str, Velocity], batch: Batch, step: int, rng: torch.Generator
    ) -> Update:
        config = self.config
        t = log_normal_angles(len(batch.x0), config.p_mean, config.p_std, rng)
        warmup = Warmup(min(1.0, step / config.warmup) if config.warmup else 1.0, config.warmup_form)
        term = consistency_term(nets, batch, t, warmup, self.tangent, rng)
        loss = config.consistency_weight * term.loss
        return Update("student", loss, {"loss": loss.detach(), **term.scalars})

    def _distribution(
        self, nets: Mapping[str, Velocity], batch: Batch, index: int, rng: torch.Generator
    ) -> Update:
        angles, t = self._angles(index, batch, rng)
        term = distribution_term(nets, batch, angles, t, rng)
        return Update("student", self.config.dmd_weight * term.loss, term.scalars)

    def _fake(self, nets: Mapping[str, Velocity], batch: Batch, index: int, rng: torch.Generator) -> Update:
        angles, t = self._angles(index, batch, rng)
        term = fake_score_term(nets, batch, angles, t, rng)
        return Update("fake", term.loss, {"fake_loss": term.loss.detach(), **term.scalars})

    def _angles(self, index: int, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        size = len(batch.x0)
        angles = simulated(self.config, index, size, rng)
        return angles, log_normal_angles(size, self.config.dmd_mean, self.config.dmd_std, rng)


def build(config: Config, tangent: TangentKind) -> RCM:
    return RCM(config, tangent)
