"""MeanFlow: the average velocity between two times, by distillation or from data (arXiv 2505.13447)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from rcm_core.config.base import Section
from rcm_core.config.types import Positive, Share
from rcm_core.diffusion.guidance import replace_rows
from rcm_core.diffusion.trigflow import angle_from_flow_time
from rcm_core.jvp import TangentKind
from rcm_core.losses.masking import finite_mask, keep_rows, mean_over
from rcm_core.losses.meanflow import average_velocity_target, meanflow_loss, normalised_loss
from rcm_core.objectives.base import left_out
from rcm_core.objectives.consistency import along_data, along_teacher, ramp
from rcm_core.objectives.meanflow import AverageVelocity, FlowState, along, guide
from rcm_core.protocols import Batch, Condition, Examples, MethodRequirements, Networks, Update


class SelfGuidance(Section):
    """Guidance of the target velocity by the student itself, at scale omega / (1 - kappa) (E50)."""

    omega: Positive
    kappa: Annotated[float, Field(ge=0, lt=1)]
    interval: tuple[Share, Share]
    """Flow times at which the guidance applies."""

    @field_validator("interval")
    @classmethod
    def _ascends(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if interval[0] >= interval[1]:
            raise ValueError("expected two times that ascend")
        return interval


class Config(Section):
    """``method:`` of ``method=meanflow``; times are flow times in [0, 1]."""

    learn_from: Literal["teacher", "data"]
    """Source of v. teacher: its guided velocity; data: the velocity of the path between real data and noise."""
    condition_dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of samples with the null condition."""
    self_guidance: SelfGuidance | None
    """Guidance by the student for learn_from = data; null: none."""
    time_mean: float
    """Mean of both flow times, sigmoid(N(time_mean, time_std^2)); the larger one is the time of the state."""
    time_std: Positive
    average_share: Share
    """Share of samples with two different times; the others are plain flow matching."""
    warmup: Annotated[int, Field(ge=0)]
    """Warm-up iterations of the derivative's weight in the target."""
    limit: Literal["weight", "normalise"]
    """Bound of the loss. weight: the loss e is weighted by 1 / (e + constant)^power (E43); normalise: by the residual's
    RMS instead of e (E51)."""
    power: Annotated[float, Field(ge=0)]
    constant: Positive

    @field_validator("self_guidance")
    @classmethod
    def _something_to_guide(cls, mix: SelfGuidance | None, info: ValidationInfo) -> SelfGuidance | None:
        if mix is not None and info.data.get("learn_from") == "teacher":
            raise ValueError(
                "the teacher's velocity is guided already; set self_guidance to null, or learn_from to data"
            )
        if mix is not None and info.data.get("condition_dropout") == 0:
            raise ValueError("condition_dropout = 0 never trains the null condition; raise condition_dropout")
        return mix


@dataclass(frozen=True)
class MeanFlow:
    config: Config
    tangent: TangentKind

    @property
    def requirements(self) -> MethodRequirements:
        needs = {"x0", "condition"} if self.config.learn_from == "teacher" else {"real"}
        return MethodRequirements(frozenset({"student"}), frozenset(needs), frozenset({"end"}))

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        tau, end = self._times(len(batch.x0), rng)
        state, condition = self._state(networks, batch, angle_from_flow_time(tau), rng)
        end = end.to(state.tau.device)
        average = AverageVelocity(networks.student, condition, end)
        with torch.no_grad():
            derivative = average.derivative(state, self.tangent)
            target = average_velocity_target(
                state.v, derivative, state.tau, end, ramp(step, self.config.warmup)
            )
            finite = finite_mask(target)
            size = mean_over(finite, keep_rows(finite, derivative).flatten(1).norm(dim=1))
        u = average(keep_rows(finite, state.x), state.tau)
        form = meanflow_loss if self.config.limit == "weight" else normalised_loss
        each = form(u, keep_rows(finite, target), self.config.power, self.config.constant)
        loss = mean_over(finite, each)
        scalars = {"loss": loss.detach(), "tangent_norm": size, "nonfinite": left_out(finite)}
        yield Update(("student",), loss, scalars)

    def _state(
        self, networks: Networks, batch: Batch, t: Tensor, rng: torch.Generator
    ) -> tuple[FlowState, Condition]:
        """Return the state and velocity target at angles ``t`` [B], and their condition."""
        config, mix = self.config, self.config.self_guidance
        examples = batch.real if config.learn_from == "data" else Examples(batch.x0, batch.condition)
        assert examples is not None  # guaranteed by the requirements
        condition, dropped = (
            examples.condition,
            torch.zeros(len(t), dtype=torch.bool, device=examples.x0.device),
        )
        if config.condition_dropout:
            drop = torch.rand(len(t), generator=rng, device=rng.device) < config.condition_dropout
            dropped = drop.to(examples.x0.device)
            condition = replace_rows(condition, batch.negative, dropped)
        if config.learn_from == "teacher":
            return along(along_teacher(networks, examples.x0, t, condition, rng)), condition
        state = along(along_data(examples.x0, t, rng))
        if mix is None:
            return state, condition
        null = replace_rows(condition, batch.negative, torch.ones_like(dropped))
        rows = ~dropped & (mix.interval[0] <= state.tau) & (state.tau <= mix.interval[1])
        return guide(networks.student, state, (condition, null), (mix.omega, mix.kappa), rows), condition

    def _times(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the flow times [B] of the state and of the average's end, which is never larger."""
        config = self.config
        draws = torch.randn(2, size, generator=rng, device=rng.device, dtype=torch.float64)
        both = torch.sigmoid(config.time_mean + config.time_std * draws)
        tau, end = both.amax(0), both.amin(0)
        averaged = torch.rand(size, generator=rng, device=rng.device) < config.average_share
        return tau, torch.where(averaged, end, tau)


def build(config: Config, tangent: TangentKind) -> MeanFlow:
    """Build the method; the tangents ``semi`` and ``discrete`` both mean a central difference here."""
    return MeanFlow(config, "exact" if tangent == "exact" else "semi")
