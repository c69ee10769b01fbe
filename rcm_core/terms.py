"""A term is a loss with its networks: what the methods schedule.

Every term returns a scalar (the mean over the samples that are finite) and detached scalars for the log;
"nonfinite" is the number of samples that were left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rcm_core.jvp import TangentKind, consistency_jvp
from rcm_core.losses.consistency import (
    WarmupForm,
    consistency_loss,
    consistency_tangent,
    normalise_tangent,
    tangent_norm,
)
from rcm_core.losses.denoising import fake_score_loss
from rcm_core.losses.distribution import distribution_gradient, distribution_loss
from rcm_core.losses.finite import finite_mask, keep_rows, mean_over
from rcm_core.protocols import Batch, Velocity
from rcm_core.samplers.few_step import walk
from rcm_core.trigflow import diffuse, predict_x0


class Term(NamedTuple):
    loss: Tensor
    scalars: dict[str, Tensor]


class Warmup(NamedTuple):
    """How much of the unstable part of the tangent is used: share ``r`` in [0, 1], in one of the two
    published forms.
    """

    r: float
    form: WarmupForm


def unit_noise(rng: torch.Generator, like: Tensor, *steps: int) -> Tensor:
    """Unit noise [*steps, *like.shape] in the dtype and on the device of ``like``, drawn on the device of
    ``rng``.
    """
    draws = torch.randn(*steps, *like.shape, generator=rng, device=rng.device, dtype=like.dtype)
    return draws.to(like.device)


def consistency_term(
    nets: Mapping[str, Velocity],
    batch: Batch,
    t: Tensor,
    warmup: Warmup,
    tangent: TangentKind,
    rng: torch.Generator,
) -> Term:
    """The sCM term (E15 to E21) at angles ``t`` [B].

    The tangent pass is without gradient and comes first, so a sample that is not finite never enters the
    gradient pass.
    """
    x0, condition = batch.x0, batch.condition
    t = t.to(x0.device)
    x = diffuse(x0, unit_noise(rng, x0), t)
    with torch.no_grad():
        teacher = nets["teacher"](x, t, condition)
        F, J = consistency_jvp(nets["student"], x, t, condition, teacher, tangent)
        g = consistency_tangent(F, teacher, J, x, t, warmup.r, warmup.form)
        finite = finite_mask(g)
        g = keep_rows(finite, g)
        norm = mean_over(finite, tangent_norm(g))
    moving = nets["student"](keep_rows(finite, x), t, condition)
    loss = mean_over(finite, consistency_loss(moving, normalise_tangent(g)))
    return Term(loss, {"tangent_norm": norm, "nonfinite": _left_out(finite)})


def distribution_term(
    nets: Mapping[str, Velocity], batch: Batch, angles: Tensor, t: Tensor, rng: torch.Generator
) -> Term:
    """The DMD term (E24, E25): ``angles`` [n, B] of the simulation, ``t`` [B] where scores are compared."""
    condition = batch.condition
    angles, t = angles.to(batch.x0.device), t.to(batch.x0.device)
    x = walk(nets["student"], unit_noise(rng, batch.x0, len(angles)), condition, angles)
    started = finite_mask(x)
    x = keep_rows(started, x)
    xg = predict_x0(x, angles[-1], nets["student"](x, angles[-1], condition))
    with torch.no_grad():
        y = diffuse(xg, unit_noise(rng, xg), t)
        fake = predict_x0(y, t, nets["fake"](y, t, condition))
        real = predict_x0(y, t, nets["teacher"](y, t, condition))
        gradient = distribution_gradient(xg, real, fake)
        finite = started & finite_mask(gradient)
        gradient = keep_rows(finite, gradient)
        size = mean_over(finite, gradient.flatten(1).norm(dim=1))
    loss = mean_over(finite, distribution_loss(xg, gradient))
    return Term(loss, {"dmd_gradient": size, "nonfinite": _left_out(finite)})


def fake_score_term(
    nets: Mapping[str, Velocity], batch: Batch, angles: Tensor, t: Tensor, rng: torch.Generator
) -> Term:
    """The fake score's denoising loss (E26) on samples simulated without gradient; arguments as above."""
    condition = batch.condition
    angles, t = angles.to(batch.x0.device), t.to(batch.x0.device)
    with torch.no_grad():
        x = walk(nets["student"], unit_noise(rng, batch.x0, len(angles)), condition, angles)
        xg = predict_x0(x, angles[-1], nets["student"](x, angles[-1], condition))
        finite = finite_mask(xg)
        xg = keep_rows(finite, xg)
        z = unit_noise(rng, xg)
    F = nets["fake"](diffuse(xg, z, t), t, condition)
    loss = mean_over(finite, fake_score_loss(F, xg, z, t))
    return Term(loss, {"nonfinite": _left_out(finite)})


def _left_out(finite: Tensor) -> Tensor:
    return (~finite).sum().float()
