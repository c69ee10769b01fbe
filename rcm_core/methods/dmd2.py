"""DMD2: distribution matching, backward simulation, two time scales, optional GAN (Yin et al. 2024, arXiv
2405.14867).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rcm_core.config.types import Positive
from rcm_core.diffusion.timesteps import shifted_angles
from rcm_core.jvp import TangentKind
from rcm_core.losses.adversarial import logistic_critic, logistic_student
from rcm_core.losses.masking import finite_mask, keep_rows, mean_over
from rcm_core.objectives.adversarial import Discriminator, freeze
from rcm_core.objectives.backward_simulation import (
    SimulationSection,
    fake_score_times,
    matching_times,
    simulation_times,
)
from rcm_core.objectives.base import left_out, unit_noise
from rcm_core.objectives.distribution_matching import Generated, fake_score_term, generate, matching_term
from rcm_core.protocols import Batch, MethodRequirements, Network, Networks, Update, require


class Config(SimulationSection):
    """``method:`` of ``method=dmd2``."""

    student_every: Annotated[int, Field(ge=2)]
    """Number of iterations per student update; the others train the fake score. This is the published K, fake score
    updates per student update, plus 1."""
    dmd_weight: Positive
    gan_weight: Annotated[float, Field(ge=0)]
    """Weight of the adversarial loss in the student's update; 0: no GAN, no real data."""
    gan_critic_weight: Annotated[float, Field(ge=0)]
    """Weight of the discriminator's loss in the fake score's update."""
    gan_blocks: tuple[Annotated[int, Field(ge=0)], ...]
    """Indices of the backbone's blocks whose features are the discriminator's input."""
    gan_backbone: Literal["fake_score", "teacher"] = "fake_score"
    """Backbone of the discriminator: the fake score, which the discriminator's loss also trains, or the frozen teacher.
    """
    gan_shared_noise: bool = False
    """If True, the discriminator gets real and fake samples with the same angles and noise."""

    @model_validator(mode="after")
    def _whole_gan(self) -> Config:
        if self.gan_weight and not (self.gan_critic_weight and self.gan_blocks):
            raise ValueError("gan_weight > 0 needs gan_critic_weight > 0 and gan_blocks")
        return self


@dataclass(frozen=True)
class DMD2:
    config: Config

    @property
    def requirements(self) -> MethodRequirements:
        config = self.config
        if not config.gan_weight:
            return MethodRequirements(frozenset({"student", "fake"}), frozenset({"condition"}))
        return MethodRequirements(
            frozenset({"student", "fake", "heads"}), frozenset({"condition", "real"}), heads=config.gan_blocks
        )

    def student_update(self, step: int) -> bool:
        return step % self.config.student_every == 0

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        """Yield the score's losses, then the GAN's with separate random draws, so a run without GAN is unchanged."""
        cycle = step // self.config.student_every
        if self.student_update(step):
            yield from self._student(networks, batch, cycle, rng)
            return
        angles = simulation_times(self.config, step - cycle - 1, len(batch.x0), rng)
        t = fake_score_times(self.config, len(batch.x0), rng)
        with torch.no_grad():
            generated = generate(networks, batch, angles, rng, self.config.simulation)
        term = fake_score_term(networks, generated, batch.condition, t, rng, self.config.fake_error)
        loss = term.loss / elements(batch)
        yield Update(("fake",), loss, {"fake_loss": loss.detach(), **term.scalars})
        if self.config.gan_weight:
            yield self._critic(networks, batch, generated, rng)

    def _student(
        self, networks: Networks, batch: Batch, index: int, rng: torch.Generator
    ) -> Iterator[Update]:
        """Keep the discriminator frozen until backward has finished: checkpointing may recompute its blocks."""
        angles = simulation_times(self.config, index, len(batch.x0), rng)
        t = matching_times(self.config, len(batch.x0), rng)
        generated = generate(networks, batch, angles, rng, self.config.simulation)
        term = matching_term(networks, generated, batch.condition, t, rng)
        loss = self.config.dmd_weight * term.loss / (2 * elements(batch))
        judges = (self._backbone(networks), require(networks.discriminator)) if self.config.gan_weight else ()
        with freeze(*judges):
            if judges:
                s = self._noise_times(batch, rng)
                logits = self._discriminator(networks).logits(networks, generated.x, batch.condition, s, rng)
                loss = loss + self.config.gan_weight * mean_over(generated.finite, logistic_student(logits))
            yield Update(("student",), loss, {"loss": loss.detach(), **term.scalars})

    def _critic(self, networks: Networks, batch: Batch, generated: Generated, rng: torch.Generator) -> Update:
        """Return the discriminator's loss; it counts only real non-finite samples, the fake ones are counted before."""
        assert batch.real is not None  # guaranteed by the requirements
        finite = finite_mask(batch.real.x0)
        real, condition = keep_rows(finite, batch.real.x0), batch.real.condition
        s, z = self._noise_times(batch, rng), unit_noise(rng, generated.x)
        fakes = self._discriminator(networks).logits_with_noise(networks, generated.x, batch.condition, s, z)
        if not self.config.gan_shared_noise:
            s, z = self._noise_times(batch, rng), unit_noise(rng, real)
        each = logistic_critic(
            self._discriminator(networks).logits_with_noise(networks, real, condition, s, z), fakes
        )
        loss = self.config.gan_critic_weight * mean_over(generated.finite & finite, each)
        roles = ("fake", "heads") if self.config.gan_backbone == "fake_score" else ("heads",)
        return Update(roles, loss, {"critic_loss": loss.detach(), "nonfinite": left_out(finite)})

    def _backbone(self, networks: Networks) -> Network:
        fake = self.config.gan_backbone == "fake_score"
        return require(networks.fake_score if fake else networks.teacher)

    def _discriminator(self, networks: Networks) -> Discriminator:
        return Discriminator(self._backbone(networks), self.config.gan_blocks)

    def _noise_times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        return shifted_angles(len(batch.x0), 1.0, rng)


def elements(batch: Batch) -> int:
    """Return the number of elements per sample. As in the released code, losses here are means over elements, and half
    the mean for matching, so the published GAN weights apply unchanged.
    """
    return batch.x0[0].numel()


def build(config: Config, tangent: TangentKind) -> DMD2:  # noqa: ARG001
    """Build the method; ``tangent`` is part of the methods' common signature and unused here."""
    return DMD2(config)
