"""SANA-Sprint: sCM and a latent adversarial loss on real data, with alternating updates (arXiv 2503.09641)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rcm_core.config.types import Positive, Share
from rcm_core.diffusion.timesteps import log_normal_angles
from rcm_core.diffusion.trigflow import NOISE_ANGLE, diffuse, predict_x0
from rcm_core.jvp import TangentKind
from rcm_core.losses.adversarial import hinge_critic, hinge_student
from rcm_core.losses.consistency import WarmupForm
from rcm_core.losses.masking import finite_mask, keep_rows, mean_over
from rcm_core.objectives.adversarial import Discriminator, freeze
from rcm_core.objectives.base import left_out, unit_noise
from rcm_core.objectives.consistency import (
    Consistency,
    Weighting,
    along_teacher,
    consistency_term,
    head_of,
    ramp,
)
from rcm_core.objectives.guidance_embedding import GuidanceSection, with_scale
from rcm_core.protocols import Batch, Condition, Examples, MethodRequirements, Networks, Update, require


class Config(GuidanceSection):
    """``method:`` of ``method=sana_sprint``."""

    warmup: Annotated[int, Field(ge=0)]
    """Number of iterations of tangent warm-up, including those of the discriminator."""
    warmup_form: WarmupForm
    weighting: Weighting
    tangent_constant: Positive = 0.1
    """Constant c of the tangent's normalisation (E20); the published 0.1 for data of deviation 0.5 is 0.2 here."""
    consistency_weight: Annotated[float, Field(ge=0)]
    """Weight of the consistency term; 0: only the adversarial loss."""
    p_mean: float
    """Mean of ln tan t ~ N(p_mean, p_std^2), for the consistency term and the adversarial loss's student times."""
    p_std: Positive
    adversarial_weight: Annotated[float, Field(ge=0)]
    """Weight lambda of the adversarial loss; 0: sCM on real data, without a discriminator."""
    noise_share: Share
    """Max-time weighting: share of adversarial samples that start from pure noise."""
    critic_mean: float
    """Mean of ln tan s ~ N(critic_mean, critic_std^2), the discriminator's noise."""
    critic_std: Positive
    misaligned: bool
    """If True, real data with another sample's prompt are fakes too."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...]
    """Indices of the frozen teacher's blocks whose features are the discriminator's input."""

    @model_validator(mode="after")
    def _some_loss(self) -> Config:
        if not (self.consistency_weight or self.adversarial_weight):
            raise ValueError("consistency_weight and adversarial_weight are both 0; raise one")
        if self.adversarial_weight and not self.blocks:
            raise ValueError("blocks is empty; name blocks of the teacher, or set adversarial_weight to 0")
        return self


@dataclass(frozen=True)
class SanaSprint:
    config: Config
    tangent: TangentKind

    @property
    def requirements(self) -> MethodRequirements:
        config = self.config
        head = head_of(config.weighting) if config.consistency_weight else frozenset()
        adversarial = bool(config.adversarial_weight)
        return MethodRequirements(
            frozenset({"student", "heads"} if adversarial else {"student"}),
            frozenset({"real"}),
            config.embedded | head,
            guidance=config.guidance_at,
            heads=config.blocks if adversarial else (),
            min_samples_per_rank=2 if adversarial and config.misaligned else 1,
        )

    def student_update(self, step: int) -> bool:
        return step % self._every == 0

    @property
    def _every(self) -> int:
        """Student updates once in this many steps: 2 with a discriminator, else 1."""
        return 2 if self.config.adversarial_weight else 1

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        assert batch.real is not None  # guaranteed by the requirements
        condition = with_scale(self.config, batch.real.condition, len(batch.real.x0), rng)
        real = Examples(batch.real.x0, condition)
        if not self.student_update(step):
            yield self._critic(networks, real, rng)
            return
        if self.config.consistency_weight:
            yield self._consistency(networks, real, step, rng)
        if self.config.adversarial_weight:
            yield self._adversarial(networks, real, rng)

    def _consistency(self, networks: Networks, real: Examples, step: int, rng: torch.Generator) -> Update:
        config = self.config
        t = log_normal_angles(len(real.x0), config.p_mean, config.p_std, rng)
        states = along_teacher(networks, real.x0, t, real.condition, rng)
        how = Consistency(
            self.tangent,
            ramp(step, config.warmup),
            config.warmup_form,
            weighting=config.weighting,
            constant=config.tangent_constant,
        )
        term = consistency_term(networks, states, real.condition, how)
        loss = config.consistency_weight * term.loss
        return Update(("student",), loss, {"loss": loss.detach(), **term.scalars})

    def _adversarial(self, networks: Networks, real: Examples, rng: torch.Generator) -> Update:
        fake, finite = self._fake(networks, real, rng)
        with freeze(require(networks.discriminator)):
            logits = self._logits(networks, fake, real.condition, rng)
        loss = self.config.adversarial_weight * mean_over(finite, hinge_student(logits))
        return Update(("student",), loss, {"adversarial_loss": loss.detach(), "nonfinite": left_out(finite)})

    def _critic(self, networks: Networks, real: Examples, rng: torch.Generator) -> Update:
        """Return the hinge loss (E38); with misaligned pairs the fake side is the mean over both kinds of fakes."""
        with torch.no_grad():
            fake, finite = self._fake(networks, real, rng)
        x0 = keep_rows(finite, real.x0)
        reals = self._logits(networks, x0, real.condition, rng)
        fakes = [self._logits(networks, fake, real.condition, rng)]
        if self.config.misaligned:
            fakes.append(self._logits(networks, x0.roll(1, 0), real.condition, rng))
        each = torch.stack([hinge_critic(reals, logits) for logits in fakes]).mean(0)
        loss = mean_over(finite, each)
        return Update(("heads",), loss, {"critic_loss": loss.detach(), "nonfinite": left_out(finite)})

    def _fake(self, networks: Networks, real: Examples, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample one step from noisy real data or pure noise; return also which rows, data included, are finite."""
        config, size = self.config, len(real.x0)
        t = log_normal_angles(size, config.p_mean, config.p_std, rng)
        pure = torch.rand(size, generator=rng, device=rng.device) < config.noise_share
        t = torch.where(pure, torch.full_like(t, NOISE_ANGLE), t).to(real.x0.device)
        finite = finite_mask(real.x0)
        x = diffuse(keep_rows(finite, real.x0), unit_noise(rng, real.x0), t)
        fake = predict_x0(x, t, networks.student(x, t, real.condition))
        finite = finite & finite_mask(fake)
        return keep_rows(finite, fake), finite

    def _logits(self, networks: Networks, x0: Tensor, condition: Condition, rng: torch.Generator) -> Tensor:
        config = self.config
        s = log_normal_angles(len(x0), config.critic_mean, config.critic_std, rng)
        return Discriminator(require(networks.teacher), config.blocks).logits(networks, x0, condition, s, rng)


def build(config: Config, tangent: TangentKind) -> SanaSprint:
    return SanaSprint(config, tangent)
