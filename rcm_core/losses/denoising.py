"""Denoising score matching in velocity space."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rcm_core.diffusion.trigflow import conditional_velocity

ScoreError = Literal["velocity", "noise", "data", "flow"]
"""The prediction whose squared error is the loss: F, the noise, the clean sample, the rectified-flow velocity."""


def fake_score_loss(F: Tensor, xg: Tensor, z: Tensor, t: Tensor, error: ScoreError = "velocity") -> Tensor:
    """``[B]``: squared error of the ``error`` prediction at y = cos t xg + sin t z, summed over elements (E26, E55).

    Every error is computed as the velocity's times a function of ``t`` [B], without a division by sin t.
    """
    each = (F - conditional_velocity(xg, z, t)).square().flatten(1).sum(1)
    return each if error == "velocity" else time_weight(t, error).to(each.dtype) * each


def time_weight(t: Tensor, error: ScoreError) -> Tensor:
    """``[B]``: squared error of the ``error`` prediction divided by the velocity's, at angles ``t`` [B] (E55)."""
    match error:
        case "velocity":
            return t.new_ones(t.shape)
        case "noise":
            return t.cos().square()
        case "data":
            return t.sin().square()
        case "flow":
            return (t.cos() + t.sin()).square()
