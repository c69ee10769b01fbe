"""sCM: continuous-time consistency distillation (Lu and Song 2024, arXiv 2410.11081)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from rcm_core.config import Positive, Section
from rcm_core.jvp import TangentKind
from rcm_core.protocols import Batch, Update, Velocity
from rcm_core.samplers.times import log_normal_angles
from rcm_core.terms import Warmup, consistency_term


class Config(Section):
    """``method:`` of ``method=scm``."""

    warmup: Annotated[int, Field(ge=0)]
    """Iterations over which the tangent is warmed up."""
    warmup_form: Literal["rcm", "scm"]
    consistency_weight: Positive
    p_mean: float
    """ln tan t ~ N(p_mean, p_std^2)."""
    p_std: Positive


@dataclass(frozen=True)
class SCM:
    config: Config
    tangent: TangentKind
    roles: frozenset[str] = frozenset({"student"})
    needs: frozenset[str] = frozenset({"x0", "condition"})

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(
        self, nets: Mapping[str, Velocity], batch: Batch, step: int, rng: torch.Generator
    ) -> Iterator[Update]:
        config = self.config
        t = log_normal_angles(len(batch.x0), config.p_mean, config.p_std, rng)
        warmup = Warmup(min(1.0, step / config.warmup) if config.warmup else 1.0, config.warmup_form)
        term = consistency_term(nets, batch, t, warmup, self.tangent, rng)
        loss = config.consistency_weight * term.loss
        yield Update("student", loss, {"loss": loss.detach(), **term.scalars})


def build(config: Config, tangent: TangentKind) -> SCM:
    return SCM(config, tangent)
