"""The terms of distribution matching: the student's samples, the matching loss, the fake score's loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import diffuse, predict_x0
from rcm_core.losses.denoising import ScoreError, fake_score_loss
from rcm_core.losses.distribution_matching import SMALLEST_WEIGHT, distribution_gradient, distribution_loss
from rcm_core.losses.masking import finite_mask, keep_rows, mean_over
from rcm_core.objectives.base import Term, left_out, unit_noise
from rcm_core.protocols import Batch, Condition, Networks, Velocity, require
from rcm_core.samplers.few_step import Kind, simulate_to_last_step


class Generated(NamedTuple):
    """Clean samples of the student [B, ...], with zeros in the rows where ``finite`` [B] is False."""

    x: Tensor
    finite: Tensor


def generate(
    networks: Networks, batch: Batch, angles: Tensor, rng: torch.Generator, kind: Kind = "renoise"
) -> Generated:
    """Run the backward simulation (E27) through ``angles`` [n, B]; only the last call has a gradient."""
    condition, angles = batch.condition, angles.to(batch.x0.device)
    noise = unit_noise(rng, batch.x0, len(angles) if kind == "renoise" else 1)
    x = simulate_to_last_step(networks.student, noise, condition, angles, kind)
    finite = finite_mask(x)
    x = keep_rows(finite, x)
    xg = predict_x0(x, angles[-1], networks.student(x, angles[-1], condition))
    finite = finite & finite_mask(xg)
    return Generated(keep_rows(finite, xg), finite)


def matching_term(
    networks: Networks,
    generated: Generated,
    condition: Condition,
    t: Tensor,
    rng: torch.Generator,
    floor: float = SMALLEST_WEIGHT,
    real: Velocity | None = None,
) -> Term:
    """Return the DMD term (E24, E25) of ``real`` (None: the guided teacher) and the fake score at angles ``t`` [B]."""
    xg, t = generated.x, t.to(generated.x.device)
    real = real or require(networks.guided_teacher)
    with torch.no_grad():
        y = diffuse(xg, unit_noise(rng, xg), t)
        fake = predict_x0(y, t, require(networks.fake_score)(y, t, condition))
        teacher = predict_x0(y, t, real(y, t, condition))
        gradient = distribution_gradient(xg, teacher, fake, floor)
    return loss_of_gradient(generated, gradient)


def loss_of_gradient(generated: Generated, gradient: Tensor) -> Term:
    """Return the loss whose gradient at ``generated.x`` is twice ``gradient`` [B, ...] (E25)."""
    with torch.no_grad():
        finite = generated.finite & finite_mask(gradient)
        gradient = keep_rows(finite, gradient)
        size = mean_over(finite, gradient.flatten(1).norm(dim=1))
    loss = mean_over(finite, distribution_loss(generated.x, gradient))
    return Term(loss, {"dmd_gradient": size, "nonfinite": left_out(finite)})


def fake_score_term(
    networks: Networks,
    generated: Generated,
    condition: Condition,
    t: Tensor,
    rng: torch.Generator,
    error: ScoreError = "velocity",
) -> Term:
    """Return the fake score's denoising loss (E26, E55) on detached samples ``generated`` at angles ``t`` [B]."""
    t = t.to(generated.x.device)
    finite = generated.finite & finite_mask(generated.x)
    xg = keep_rows(finite, generated.x)
    z = unit_noise(rng, xg)
    F = require(networks.fake_score)(diffuse(xg, z, t), t, condition)
    return Term(mean_over(finite, fake_score_loss(F, xg, z, t, error)), {"nonfinite": left_out(finite)})
