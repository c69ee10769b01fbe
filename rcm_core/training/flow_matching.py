"""Flow matching with condition dropout: the training method of the built-in teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rcm_core.diffusion.guidance import replace_rows
from rcm_core.diffusion.trigflow import angle_from_flow_time, conditional_velocity, diffuse, per_sample
from rcm_core.protocols import Batch, MethodRequirements, Networks, Update


@dataclass(frozen=True)
class FlowMatching:
    """Rectified-flow regression ``|u - (z - x0)|^2`` at logit-normal times (E8), regressed through F."""

    condition_dropout: float
    time_mean: float = 0.0
    """Mean of the logit of flow time; its standard deviation is 1."""
    requirements = MethodRequirements(frozenset({"student"}), frozenset({"x0", "condition"}))

    def student_update(self, step: int) -> bool:  # noqa: ARG002 - every step moves the network
        """Return True: every step updates the network."""
        return True

    def updates(
        self,
        networks: Networks,
        batch: Batch,
        step: int,  # noqa: ARG002
        rng: torch.Generator,
    ) -> Iterator[Update]:
        """Yield one update: the mean squared error of the rectified-flow velocity."""
        x0 = batch.x0
        z = torch.randn(x0.shape, generator=rng, device=x0.device)
        logit = self.time_mean + torch.randn(len(x0), generator=rng, device=x0.device)
        t = angle_from_flow_time(torch.sigmoid(logit))
        drop = torch.rand(len(x0), generator=rng, device=x0.device) < self.condition_dropout
        condition = replace_rows(batch.condition, batch.negative, drop)
        F = networks.student(diffuse(x0, z, t), t, condition)
        # u = (cos t + sin t) F - (cos t - sin t) x: an error of F is an error of u times 1 / (cos t + sin t)
        error = per_sample(t.cos() + t.sin(), x0) * (F - conditional_velocity(x0, z, t))
        loss = error.square().mean()
        yield Update(("student",), loss, {"loss": loss.detach()})
