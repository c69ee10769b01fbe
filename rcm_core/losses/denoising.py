"""Denoising score matching in velocity space."""

from __future__ import annotations

from torch import Tensor

from rcm_core.trigflow import conditional_velocity


def fake_score_loss(F: Tensor, xg: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """``[B]``: sum of (xg - x0(y, t))^2 / sin^2 t at y = cos t xg + sin t z (E26).

    Equals the squared error of the velocity, which is what is computed: nothing is divided by sin t.
    """
    return (F - conditional_velocity(xg, z, t)).square().flatten(1).sum(1)
