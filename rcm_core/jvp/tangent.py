"""The tangent of consistency training in three variants: exact, semi-continuous, discrete (rCM, arXiv 2510.08431)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import per_sample, rotate
from rcm_core.errors import InputError
from rcm_core.jvp.attention import flash_jvp
from rcm_core.jvp.forward import jvp
from rcm_core.protocols import Condition, Velocity

TangentKind = Literal["exact", "semi", "discrete"]

ANGLE_STEP = 1e-4
"""Step of the finite differences in the angle; a sample at a smaller angle uses its own angle."""

SMALLEST_STEP = 1e-6


@torch.no_grad()
def consistency_jvp(
    velocity: Velocity, x: Tensor, t: Tensor, condition: Condition, F_teacher: Tensor, kind: TangentKind
) -> tuple[Tensor, Tensor]:
    """Return ``F`` and ``J`` = cos t sin t dF/dt along the teacher's ODE dx/dt = ``F_teacher`` (E16), both without
    gradient.

    "exact" is forward-mode AD in x and t; "semi" takes the derivative in t by a backward difference (E22);
    "discrete" uses only finite differences (E23).
    """
    match kind:
        case "exact":
            return _exact(velocity, x, t, condition, F_teacher)
        case "semi":
            return _semi(velocity, x, t, condition, F_teacher)
        case "discrete":
            return _discrete(velocity, x, t, condition, F_teacher)
        case _:
            raise InputError(f"unknown tangent {kind!r}; choose exact, semi or discrete")


def _exact(
    velocity: Velocity, x: Tensor, t: Tensor, condition: Condition, F_teacher: Tensor
) -> tuple[Tensor, Tensor]:
    scale = t.cos() * t.sin()
    with flash_jvp():
        return jvp(
            lambda state, angle: velocity(state, angle, condition),
            (x, t),
            (per_sample(scale, x) * F_teacher.to(x.dtype), scale),
        )


def _semi(
    velocity: Velocity, x: Tensor, t: Tensor, condition: Condition, F_teacher: Tensor
) -> tuple[Tensor, Tensor]:
    scale, h = t.cos() * t.sin(), _step(t)
    with flash_jvp():
        F, spatial = jvp(
            lambda state: velocity(state, t, condition),
            (x,),
            (per_sample(scale, x) * F_teacher.to(x.dtype),),
        )
    earlier = velocity(x, t - h, condition)
    return F, spatial + _rotated_difference(F, earlier, h, scale)


def _discrete(
    velocity: Velocity, x: Tensor, t: Tensor, condition: Condition, F_teacher: Tensor
) -> tuple[Tensor, Tensor]:
    scale, h = t.cos() * t.sin(), _step(t)
    F = velocity(x, t, condition)
    earlier = velocity(rotate(x, t, t - h, F_teacher.to(x.dtype)), t - h, condition)
    return F, _rotated_difference(F, earlier, h, scale)


def _step(t: Tensor) -> Tensor:
    return t.clamp(min=SMALLEST_STEP, max=ANGLE_STEP)


def _rotated_difference(F: Tensor, earlier: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """Return ``scale`` (cos h F - F') / sin h (E22, E23)."""
    return per_sample(scale / h.sin(), F) * (per_sample(h.cos(), F) * F - earlier)
