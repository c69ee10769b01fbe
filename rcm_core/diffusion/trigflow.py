"""TrigFlow: the angle, the path and the clean prediction, in unit-variance units.

Angles are ``[B]``, states ``[B, ...]``. This package draws angles in float64, so that coefficients keep full
precision and are cast last. Source: Lu and Song 2024 (arXiv 2410.11081), section 3; equation numbers are those
of docs/maths.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_ANGLE = math.pi / 2
"""The angle of pure noise."""


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Reshape ``value`` [B] to [B, 1, ...] to multiply ``like`` [B, ...], in the dtype of ``like``."""
    return value.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def diffuse(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Return the state at angle ``t`` between data ``x0`` and unit noise ``z`` (E1)."""
    return per_sample(t.cos(), x0) * x0 + per_sample(t.sin(), z) * z


def conditional_velocity(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Return dx/dt of the path through ``x0`` and ``z``, the regression target of a diffusion network (E2)."""
    return per_sample(t.cos(), z) * z - per_sample(t.sin(), x0) * x0


def predict_x0(x: Tensor, t: Tensor, F: Tensor) -> Tensor:
    """Predict the clean sample from state and velocity; the consistency function if ``F`` is the student's (E4)."""
    return per_sample(t.cos(), x) * x - per_sample(t.sin(), x) * F


def rotate(x: Tensor, t: Tensor, s: Tensor, F: Tensor) -> Tensor:
    """Take the first-order step to angle ``s``, which is exact for constant ``x0`` and ``z`` (E5, DDIM)."""
    return per_sample((t - s).cos(), x) * x - per_sample((t - s).sin(), x) * F


def angle_from_flow_time(tau: Tensor) -> Tensor:
    """Return the angle with the signal-to-noise ratio of rectified-flow time ``tau`` in [0, 1] (E6)."""
    return torch.atan2(tau, 1 - tau)


def flow_time_from_angle(t: Tensor) -> Tensor:
    """Return the rectified-flow time in [0, 1] with the signal-to-noise ratio of angle ``t`` (E6)."""
    return t.sin() / (t.cos() + t.sin())
