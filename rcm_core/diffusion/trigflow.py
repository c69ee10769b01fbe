"""TrigFlow: the angle, the path and the clean prediction, in unit-variance units.

Angles are ``[B]`` (float64 where this package draws them: coefficients keep full precision and are cast
last), states ``[B, ...]``. Source: Lu and Song 2024 (arXiv 2410.11081), section 3; equation numbers are those
of docs/maths.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_ANGLE = math.pi / 2
"""The angle of pure noise."""


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """``value`` [B] shaped [B, 1, ...] to multiply ``like`` [B, ...], in the dtype of ``like``."""
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def diffuse(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """State at angle ``t`` between data ``x0`` and unit noise ``z`` (E1)."""
    return per_sample(t.cos(), x0) * x0 + per_sample(t.sin(), z) * z


def conditional_velocity(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """dx/dt of the path through ``x0`` and ``z``: what a diffusion network regresses (E2)."""
    return per_sample(t.cos(), z) * z - per_sample(t.sin(), x0) * x0


def predict_x0(x: Tensor, t: Tensor, F: Tensor) -> Tensor:
    """Clean sample from state and velocity; the consistency function when ``F`` is the student's (E4)."""
    return per_sample(t.cos(), x) * x - per_sample(t.sin(), x) * F


def rotate(x: Tensor, t: Tensor, s: Tensor, F: Tensor) -> Tensor:
    """State at angle ``s`` by the first-order step that is exact for constant ``x0`` and ``z`` (E5, DDIM)."""
    return per_sample((t - s).cos(), x) * x - per_sample((t - s).sin(), x) * F


def angle_from_flow_time(tau: Tensor) -> Tensor:
    """Angle of the same signal-to-noise ratio as rectified-flow time ``tau`` in [0, 1] (E6)."""
    return torch.atan2(tau, 1 - tau)


def flow_time_from_angle(t: Tensor) -> Tensor:
    """Rectified-flow time in [0, 1] of the same signal-to-noise ratio as angle ``t`` (E6)."""
    return t.sin() / (t.cos() + t.sin())
