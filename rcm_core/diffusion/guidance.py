"""Classifier-free guidance: F_null + s (F_cond - F_null), so that s = 1 means no guidance (E11)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import per_sample
from rcm_core.errors import InputError
from rcm_core.protocols import Condition, Velocity


def calls_per_step(scale: float) -> int:
    """Return the network calls per step of a teacher at guidance ``scale``: one at scale 1, else two (conditional and
    null).
    """
    return 1 if scale == 1 else 2


@dataclass(frozen=True)
class Guided:
    """A guided Velocity that calls ``velocity`` once with both conditions, a batch of 2B (Ho and Salimans, arXiv
    2207.12598).
    """

    velocity: Velocity
    scale: float | Tensor
    """Guidance scale: one for all samples, or per-sample scales [B]."""
    negative: Condition
    """The null condition, with the same names as the condition; a batch of 1 is used for every sample."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = per_sample(scale, x)
        elif calls_per_step(scale) == 1:
            return self.velocity(x, t, condition)
        both = _concatenate(condition, self.negative)
        conditional, null = self.velocity(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return null + scale * (conditional - null)


def replace_rows(condition: Condition, other: Condition, rows: Tensor) -> Condition:
    """Return ``condition`` with ``other`` (batch 1 or B) in the samples where ``rows`` [B] is True."""
    return {
        name: torch.where(per_sample(rows, value).bool(), other[name], value)
        for name, value in condition.items()
    }


def _concatenate(condition: Condition, negative: Condition) -> Condition:
    if condition.keys() != negative.keys():
        raise InputError(
            f"the condition has {sorted(condition)}, but the negative condition has {sorted(negative)}; "
            "encode both with the same codec"
        )
    return {name: torch.cat([value, negative[name].expand_as(value)]) for name, value in condition.items()}
