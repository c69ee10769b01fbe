"""Classifier-free guidance, written once: F_null + s (F_cond - F_null), so that s = 1 means none (E11)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import per_sample
from rcm_core.errors import InputError
from rcm_core.protocols import Condition, Velocity


def calls_per_step(scale: float) -> int:
    """Network calls for each step of a teacher at guidance ``scale``: the conditional one, and the null one unless the
    scale is 1.
    """
    return 1 if scale == 1 else 2


@dataclass(frozen=True)
class Guided:
    """A Velocity that calls ``velocity`` once on both conditions, a batch of 2B (Ho and Salimans, arXiv
    2207.12598).
    """

    velocity: Velocity
    scale: float | Tensor
    """One for all, or one for each sample [B]."""
    negative: Condition
    """The null condition, of the same names as the condition; a batch of 1 serves every sample."""

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
    """``condition`` with ``other`` (batch 1 or B) where ``rows`` [B] is true."""
    return {
        name: torch.where(per_sample(rows, value).bool(), other[name], value)
        for name, value in condition.items()
    }


def _concatenate(condition: Condition, negative: Condition) -> Condition:
    if condition.keys() != negative.keys():
        raise InputError(
            f"the condition holds {sorted(condition)} and the negative condition {sorted(negative)}; "
            "encode both with the same codec"
        )
    return {name: torch.cat([value, negative[name].expand_as(value)]) for name, value in condition.items()}
