"""DMD2 without its GAN: distribution matching, backward simulation (Yin et al. 2024, arXiv 2405.14867)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_core.config import Count, Positive
from rcm_core.jvp import TangentKind
from rcm_core.protocols import Batch, Update, Velocity
from rcm_core.samplers.times import log_normal_angles
from rcm_core.simulation import SimulationSection, simulated
from rcm_core.terms import distribution_term, fake_score_term


class Config(SimulationSection):
    """``method:`` of ``method=dmd2``."""

    student_every: Count
    """One student update in this many iterations; the others train the fake score."""
    dmd_weight: Positive


@dataclass(frozen=True)
class DMD2:
    config: Config
    roles: frozenset[str] = frozenset({"student", "fake"})
    needs: frozenset[str] = frozenset({"condition"})

    def student_update(self, step: int) -> bool:
        return step % self.config.student_every == 0

    def updates(
        self, nets: Mapping[str, Velocity], batch: Batch, step: int, rng: torch.Generator
    ) -> Iterator[Update]:
        config = self.config
        cycle = step // config.student_every
        if self.student_update(step):
            angles, t = self._angles(cycle, batch, rng)
            term = distribution_term(nets, batch, angles, t, rng)
            loss = config.dmd_weight * term.loss
            yield Update("student", loss, {"loss": loss.detach(), **term.scalars})
            return
        angles, t = self._angles(step - cycle - 1, batch, rng)
        term = fake_score_term(nets, batch, angles, t, rng)
        yield Update("fake", term.loss, {"fake_loss": term.loss.detach(), **term.scalars})

    def _angles(self, index: int, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        size = len(batch.x0)
        angles = simulated(self.config, index, size, rng)
        return angles, log_normal_angles(size, self.config.dmd_mean, self.config.dmd_std, rng)


def build(config: Config, tangent: TangentKind) -> DMD2:  # noqa: ARG001
    """``tangent`` is accepted for the methods' common form; nothing here needs one."""
    return DMD2(config)
