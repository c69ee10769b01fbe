"""dCM: the discrete-time consistency option of rCM's released code (arXiv 2510.08431)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rcm_core.config.types import Positive
from rcm_core.jvp import TangentKind
from rcm_core.objectives.discrete_consistency import DiscreteSection, discrete_term
from rcm_core.protocols import Batch, MethodRequirements, Networks, Update


class Config(DiscreteSection):
    """``method:`` of ``method=dcm``."""

    consistency_weight: Positive


@dataclass(frozen=True)
class DCM:
    config: Config
    requirements = MethodRequirements(frozenset({"student"}), frozenset({"x0", "condition"}))

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:  # noqa: ARG002
        term = discrete_term(self.config, networks, batch, rng)
        loss = self.config.consistency_weight * term.loss
        yield Update(("student",), loss, {"loss": loss.detach(), **term.scalars})


def build(config: Config, tangent: TangentKind) -> DCM:  # noqa: ARG001
    """Build the method; ``tangent`` is part of the methods' common signature and unused here."""
    return DCM(config)
