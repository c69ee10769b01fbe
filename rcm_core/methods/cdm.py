"""CDM: distribution matching at any time, on and off the student's own trajectories (arXiv 2605.06376)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rcm_core.config.base import Section
from rcm_core.config.types import Count, Positive, Share
from rcm_core.diffusion.trigflow import (
    angle_from_flow_time,
    diffuse,
    flow_time_from_angle,
    predict_x0,
    rotate,
)
from rcm_core.jvp import TangentKind
from rcm_core.losses.denoising import ScoreError
from rcm_core.losses.distribution_matching import augmentation_gradient
from rcm_core.losses.masking import finite_mask, keep_rows
from rcm_core.objectives.base import Term, unit_noise
from rcm_core.objectives.distribution_matching import (
    Generated,
    fake_score_term,
    loss_of_gradient,
    matching_term,
)
from rcm_core.protocols import Batch, Condition, MethodRequirements, Networks, TargetUpdate, Update, require
from rcm_core.rng import generator
from rcm_core.samplers.few_step import Kind
from rcm_core.samplers.rollout import Trajectory, random_schedule, record_trajectory

Weight = Annotated[float, Field(ge=0)]


class Config(Section):
    """``method:`` of ``method=cdm``; times are flow times in [0, 1]."""

    student_every: Count
    """R: number of fake score updates per student update."""
    rollout_steps: Count
    """N_max: the student's trajectories have 1 to N_max steps."""
    rollout_low: Share
    rollout_high: Share
    """Bounds of a trajectory's random times, before the shift."""
    rollout_shift: Positive
    """Time shift of the model."""
    matching_time_min: Annotated[float, Field(gt=0, lt=1)]
    matching_time_max: Annotated[float, Field(gt=0, lt=1)]
    """Bounds of the times of the matching."""
    augmentation_weight: Weight
    matching_weight: Weight
    off_trajectory_weight: Weight
    """Weights of L_CA, L_DM and L_CDM (E44, E25, E48)."""
    alpha: Positive
    """Strength of the guidance in L_CA; approximately a guidance scale of 1 + alpha."""
    min_normaliser: Positive
    """Lower bound of a pseudo-gradient's normaliser."""
    fake_error: ScoreError = "velocity"
    """Prediction whose squared error is the fake score's loss; it determines the loss's weight over time (E55)."""
    through_velocity: bool
    """If True, the gradient of L_CDM also flows through the extrapolating velocity; False in the released code."""
    fake_score_ema_rate: Share
    """Share by which the fake score moves towards the student after each fake score update."""
    simulation: ClassVar[Kind] = "euler"
    """Sampler kind of the student's rollouts; not a setting."""

    @model_validator(mode="after")
    def _check_order(self) -> Config:
        for low, high in (("rollout_low", "rollout_high"), ("matching_time_min", "matching_time_max")):
            least, most = getattr(self, low), getattr(self, high)
            if least >= most:
                raise ValueError(f"{low} = {least:g} is not below {high} = {most:g}; change one of them")
        if not self.matching_weight + self.off_trajectory_weight:
            raise ValueError(
                "matching_weight and off_trajectory_weight are both 0: augmentation alone diverges; set one"
            )
        return self


@dataclass(frozen=True)
class CDM:
    config: Config

    @property
    def requirements(self) -> MethodRequirements:
        follow = TargetUpdate("fake", "student", self.config.fake_score_ema_rate, "fake")
        return MethodRequirements(frozenset({"student", "fake"}), frozenset({"condition"}), follows=(follow,))

    def student_update(self, step: int) -> bool:
        return (step + 1) % self.config.student_every == 0

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        """Yield the fake score's update in every iteration; the student's losses share its trajectory and anchors."""
        condition, size = batch.condition, len(batch.x0)
        walk = self._rollout(networks, batch, step, rng)
        anchor = torch.randint(len(walk.t), (size,), generator=rng, device=rng.device).to(walk.x.device)
        rows = torch.arange(size, device=anchor.device)
        x, F, t = walk.x[anchor, rows], walk.F[anchor, rows], walk.t[anchor]
        finite = finite_mask(x, F)
        x, F = keep_rows(finite, x), keep_rows(finite, F)
        generated = Generated(predict_x0(x, t, F), finite)
        q = self._matching_times(size, rng)
        term = fake_score_term(networks, generated, condition, q, rng, self.config.fake_error)
        loss = term.loss / batch.x0[0].numel()
        yield Update(("fake",), loss, {"fake_loss": loss.detach(), **term.scalars})
        if self.student_update(step):
            yield self._on_route(networks, Generated(x, finite), t, condition, rng)
            if self.config.off_trajectory_weight:
                yield self._off_route(networks, Generated(x, finite), F, t, condition, rng)

    def _rollout(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Trajectory:
        """Run the student's deterministic sampler at random times; the number of steps is equal on all ranks."""
        config = self.config
        length = torch.randint(1, config.rollout_steps + 1, (), generator=generator("cdm", step))
        angles = random_schedule(
            int(length), config.rollout_low, config.rollout_high, config.rollout_shift, rng
        )
        noise = unit_noise(rng, batch.x0)
        return record_trajectory(networks.student, noise, angles.to(noise.device), batch.condition)

    def _on_route(
        self, networks: Networks, state: Generated, t: Tensor, condition: Condition, rng: torch.Generator
    ) -> Update:
        """Return L_CA + L_DM at the anchor, from one student call."""
        config = self.config
        generated = Generated(predict_x0(state.x, t, networks.student(state.x, t, condition)), state.finite)
        term = self._match(networks, generated, condition, rng)
        loss = config.matching_weight * term.loss
        if config.augmentation_weight:
            loss = (
                loss + config.augmentation_weight * self._augment(networks, generated, t, condition, rng).loss
            )
        loss = loss / state.x[0].numel()
        return Update(("student",), loss, {"loss": loss.detach(), **term.scalars})

    def _match(
        self, networks: Networks, generated: Generated, condition: Condition, rng: torch.Generator
    ) -> Term:
        """Return the matching term of the student's predictions, at random times."""
        times = self._matching_times(len(generated.x), rng)
        floor = self.config.min_normaliser
        return matching_term(
            networks, generated, condition, times, rng, floor, real=require(networks.teacher)
        )

    def _augment(
        self, networks: Networks, generated: Generated, t: Tensor, condition: Condition, rng: torch.Generator
    ) -> Term:
        """Return L_CA, with guidance alone as direction, at times up to the anchor's."""
        with torch.no_grad():
            q = self._matching_times(len(t), rng, flow_time_from_angle(t))
            y = diffuse(generated.x, unit_noise(rng, generated.x), q)
            null = predict_x0(y, q, require(networks.unconditional_teacher)(y, q, condition))
            conditional = predict_x0(y, q, require(networks.teacher)(y, q, condition))
            gradient = augmentation_gradient(
                generated.x, conditional, null, self.config.alpha, self.config.min_normaliser
            )
        return loss_of_gradient(generated, gradient)

    def _off_route(
        self,
        networks: Networks,
        state: Generated,
        F: Tensor,
        t: Tensor,
        condition: Condition,
        rng: torch.Generator,
    ) -> Update:
        """Return L_CDM: extrapolate the state along its velocity to another time and match it there (E48)."""
        config = self.config
        away = self._matching_times(len(t), rng).to(t.device)
        along = networks.student(state.x, t, condition) if config.through_velocity else F
        x = rotate(state.x, t, away, along)
        generated = Generated(predict_x0(x, away, networks.student(x, away, condition)), state.finite)
        term = self._match(networks, generated, condition, rng)
        loss = config.off_trajectory_weight * term.loss / state.x[0].numel()
        return Update(("student",), loss, {"off_loss": loss.detach(), **term.scalars})

    def _matching_times(self, size: int, rng: torch.Generator, most: Tensor | None = None) -> Tensor:
        """Return ``[size]`` angles of uniform flow times within the bounds, and below ``most`` [size] if not None."""
        config = self.config
        q = torch.rand(size, generator=rng, device=rng.device, dtype=torch.float64)
        if most is not None:
            q = q.to(most.device) * most
        return angle_from_flow_time(q.clamp(config.matching_time_min, config.matching_time_max))


def build(config: Config, tangent: TangentKind) -> CDM:  # noqa: ARG001
    """Build the method; ``tangent`` is part of the methods' common signature and unused here."""
    return CDM(config)
