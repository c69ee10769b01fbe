"""The student's sampler: denoise, renoise, denoise (E28; Song et al. 2023, arXiv 2303.01469, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.protocols import Condition, Velocity
from rcm_core.samplers.times import fixed_angles
from rcm_core.trigflow import diffuse, predict_x0


@torch.no_grad()
def walk(velocity: Velocity, noise: Tensor, condition: Condition, angles: Tensor) -> Tensor:
    """State at the last angle, before the last denoising; no gradient.

    ``noise`` [n, B, ...] is unit noise, one per angle: the first is the initial state, the others renoise.
    ``angles`` [n, B] descend.
    """
    x = noise[0]
    for i in range(len(angles) - 1):
        x0 = predict_x0(x, angles[i], velocity(x, angles[i], condition))
        x = diffuse(x0, noise[i + 1], angles[i + 1])
    return x


@torch.no_grad()
def sample_student(
    velocity: Velocity, noise: Tensor, condition: Condition, angles: Sequence[float]
) -> Tensor:
    """Samples ``x0`` [B, ...] in ``len(angles)`` network calls.

    ``noise`` [steps, B, ...] is unit noise, so that the caller can seed every sample by its own id and no
    sample depends on the others in its batch; ``angles`` descend from (about) pi/2. InputError if the two
    disagree.
    """
    if len(noise) != len(angles) or not angles:
        raise InputError(
            f"{len(angles)} angles but noise for {len(noise)} steps; give one noise tensor for each angle"
        )
    if any(later >= earlier for earlier, later in pairwise(angles)):
        raise InputError(f"angles {tuple(angles)} must descend, from noise (pi/2) towards data (0)")
    schedule = fixed_angles(angles, noise.shape[1], noise.device)
    x = walk(velocity, noise, condition, schedule)
    return predict_x0(x, schedule[-1], velocity(x, schedule[-1], condition))
