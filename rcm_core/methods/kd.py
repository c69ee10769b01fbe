"""Knowledge distillation: regression on the ends of the teacher's trajectories (Luhman and Luhman 2021, arXiv
2101.02388); the plain baseline, and an initialiser for other methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rcm_core.config.base import Section
from rcm_core.config.types import Positive, Share
from rcm_core.diffusion.trigflow import predict_x0
from rcm_core.jvp import TangentKind
from rcm_core.losses.masking import finite_mask, keep_rows, mean_over
from rcm_core.losses.regression import PairLoss, pair_loss
from rcm_core.objectives.base import left_out
from rcm_core.protocols import Batch, MethodRequirements, Networks, Update


class Config(Section):
    """``method:`` of ``method=kd``."""

    start_share: Share
    """Share of samples that start at pure noise; the others start at a random point of the trajectory."""
    loss: PairLoss
    huber: Positive
    """Constant c of the pseudo-Huber loss (E41)."""


@dataclass(frozen=True)
class KD:
    config: Config
    requirements = MethodRequirements(frozenset({"student"}), frozenset({"routes", "x0", "condition"}))

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:  # noqa: ARG002
        assert batch.route is not None  # guaranteed by the requirements
        route, size = batch.route, len(batch.x0)
        point = torch.randint(route.t.shape[1], (size,), generator=rng, device=rng.device)
        at_start = torch.rand(size, generator=rng, device=rng.device) < self.config.start_share
        rows = torch.arange(size, device=route.x.device)
        point = torch.where(at_start, torch.zeros_like(point), point).to(rows.device)
        x, t = route.x[rows, point], route.t[rows, point].double()
        finite = finite_mask(x, batch.x0)
        x = keep_rows(finite, x)
        prediction = predict_x0(x, t, networks.student(x, t, batch.condition))
        each = pair_loss(prediction, keep_rows(finite, batch.x0), self.config.loss, self.config.huber)
        loss = mean_over(finite, each)
        yield Update(("student",), loss, {"loss": loss.detach(), "nonfinite": left_out(finite)})


def build(config: Config, tangent: TangentKind) -> KD:  # noqa: ARG001
    """Build the method; ``tangent`` is part of the methods' common signature and unused here."""
    return KD(config)
