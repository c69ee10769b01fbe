"""MeanFlow: the average velocity between two times, by distillation or from data (arXiv 2505.13447)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rcm_core.config import Positive, Section, Share
from rcm_core.jvp import TangentKind
from rcm_core.losses.finite import finite_mask, keep_rows, mean_over
from rcm_core.losses.meanflow import average_velocity_target, meanflow_loss
from rcm_core.protocols import Batch, Demands, Nets, Update
from rcm_core.terms import left_out
from rcm_core.terms.average import AverageVelocity, along
from rcm_core.terms.consistency import along_data, along_teacher, ramp
from rcm_core.trigflow import angle_from_flow_time


class Config(Section):
    """``method:`` of ``method=meanflow``; times are flow times in [0, 1]."""

    learn_from: Literal["teacher", "data"]
    """teacher: v is its guided velocity; data: the velocity of the path between real data and noise."""
    time_mean: float
    """Both times are sigmoid(N(time_mean, time_std^2)); the later one is where the state lies."""
    time_std: Positive
    average_share: Share
    """Share of the samples whose times differ; the others are plain flow matching."""
    warmup: Annotated[int, Field(ge=0)]
    """Iterations over which the derivative's part of the target grows to its whole."""
    power: Annotated[float, Field(ge=0)]
    constant: Positive
    """The loss e is weighted by 1 / (e + constant)^power (E43)."""


@dataclass(frozen=True)
class MeanFlow:
    config: Config
    tangent: TangentKind

    @property
    def demands(self) -> Demands:
        needs = {"x0", "condition"} if self.config.learn_from == "teacher" else {"real"}
        return Demands(frozenset({"student"}), frozenset(needs), frozenset({"end"}))

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        tau, end = self._times(len(batch.x0), rng)
        t = angle_from_flow_time(tau)
        if self.config.learn_from == "data":
            assert batch.real is not None  # demanded
            states, condition = along_data(batch.real.x0, t, rng), batch.real.condition
        else:
            condition = batch.condition
            states = along_teacher(nets, batch.x0, t, condition, rng)
        state = along(states)
        end = end.to(state.tau.device)
        average = AverageVelocity(nets["student"], condition, end)
        with torch.no_grad():
            derivative = average.derivative(state, self.tangent)
            target = average_velocity_target(
                state.v, derivative, state.tau, end, ramp(step, self.config.warmup)
            )
            finite = finite_mask(target)
            size = mean_over(finite, keep_rows(finite, derivative).flatten(1).norm(dim=1))
        u = average(keep_rows(finite, state.x), state.tau)
        each = meanflow_loss(u, keep_rows(finite, target), self.config.power, self.config.constant)
        loss = mean_over(finite, each)
        scalars = {"loss": loss.detach(), "tangent_norm": size, "nonfinite": left_out(finite)}
        yield Update(("student",), loss, scalars)

    def _times(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Flow times [B] of the state, and where the average ends: at most that."""
        config = self.config
        draws = torch.randn(2, size, generator=rng, device=rng.device, dtype=torch.float64)
        both = torch.sigmoid(config.time_mean + config.time_std * draws)
        tau, end = both.amax(0), both.amin(0)
        averaged = torch.rand(size, generator=rng, device=rng.device) < config.average_share
        return tau, torch.where(averaged, end, tau)


def build(config: Config, tangent: TangentKind) -> MeanFlow:
    return MeanFlow(config, tangent)
