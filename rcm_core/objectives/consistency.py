"""The continuous-time consistency term for given states and directions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import conditional_velocity, diffuse
from rcm_core.jvp import TangentKind, consistency_jvp
from rcm_core.losses.consistency import (
    WarmupForm,
    adaptive,
    clip_tangent,
    consistency_loss,
    consistency_tangent,
    normalise_rms,
    normalise_tangent,
    prior_weight,
    tangent_norm,
)
from rcm_core.losses.masking import finite_mask, keep_rows, mean_over
from rcm_core.objectives.base import Term, left_out, unit_noise
from rcm_core.protocols import Condition, Networks, require

Limit = Literal["normalise", "rms", "clip"]
Weighting = Literal["none", "adaptive", "adaptive_prior"]


class Consistency(NamedTuple):
    """Settings of the consistency term."""

    tangent: TangentKind
    r: float = 1.0
    """Weight of the tangent's unstable part, in [0, 1]."""
    form: WarmupForm = "rcm"
    limit: Limit = "normalise"
    weighting: Weighting = "none"
    """"adaptive": E35; "adaptive_prior": also divided by tan t (E36). Both need the student's log_variance."""
    constant: float = 0.1
    """Constant c of the tangent's normalisation (E20, E54), for data of unit variance."""


class States(NamedTuple):
    """Points of the consistency loss: states ``x`` [B, ...] at angles ``t`` [B], and the direction dx/dt."""

    x: Tensor
    t: Tensor
    direction: Tensor
    keep: Tensor | None = None
    """[B] booleans; False excludes a row from the loss and from the count of non-finite samples."""


def head_of(weighting: Weighting) -> frozenset[str]:
    """Return the student's extra (protocols.MethodRequirements) that ``weighting`` needs."""
    return frozenset() if weighting == "none" else frozenset({"log_variance"})


def ramp(step: int, length: int) -> float:
    """Return the linear warm-up: 0 at step 0, 1 from step ``length`` on."""
    return min(1.0, step / length) if length else 1.0


def along_teacher(
    networks: Networks, x0: Tensor, t: Tensor, condition: Condition, rng: torch.Generator
) -> States:
    """Return ``x0`` with noise at angles ``t`` [B], and the guided teacher's velocity there."""
    t = t.to(x0.device)
    x = diffuse(x0, unit_noise(rng, x0), t)
    with torch.no_grad():
        return States(x, t, require(networks.guided_teacher)(x, t, condition))


def along_data(x0: Tensor, t: Tensor, rng: torch.Generator) -> States:
    """Return ``x0`` with noise at angles ``t`` [B], and the velocity of the path through that noise (E2)."""
    t, z = t.to(x0.device), unit_noise(rng, x0)
    return States(diffuse(x0, z, t), t, conditional_velocity(x0, z, t))


def limit_tangent(g: Tensor, limit: Limit, constant: float) -> Tensor:
    """Bound the tangent ``g`` [B, ...] by its norm (E20), its RMS (E54) or per element."""
    match limit:
        case "normalise":
            return normalise_tangent(g, constant)
        case "rms":
            return normalise_rms(g, constant)
        case "clip":
            return clip_tangent(g)


def consistency_term(networks: Networks, states: States, condition: Condition, how: Consistency) -> Term:
    """Return the sCM term (E15 to E21).

    The tangent pass has no gradient and runs first, so a non-finite sample never enters the gradient pass.
    """
    x, t, student = states.x, states.t, networks.student
    with torch.no_grad():
        F, J = consistency_jvp(student, x, t, condition, states.direction, how.tangent)
        g = consistency_tangent(F, states.direction, J, x, t, how.r, how.form)
        finite = finite_mask(g)
        counted = finite if states.keep is None else finite & states.keep
        g = keep_rows(counted, g)
        norm = mean_over(counted, tangent_norm(g))
        target = limit_tangent(g, how.limit, how.constant)
    moving = student(keep_rows(counted, x), t, condition)
    each = consistency_loss(moving, target)
    if how.weighting != "none":
        prior = prior_weight(t, each) if how.weighting == "adaptive_prior" else None
        each = adaptive(each, student.log_variance(t), prior)
    return Term(mean_over(counted, each), {"tangent_norm": norm, "nonfinite": left_out(finite)})
