"""The continuous-time consistency loss (sCM, Lu and Song 2024, arXiv 2410.11081; rCM, arXiv 2510.08431)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import per_sample

WarmupForm = Literal["rcm", "scm"]


def consistency_tangent(
    F_student: Tensor, F_teacher: Tensor, J: Tensor, x: Tensor, t: Tensor, r: float, form: WarmupForm = "rcm"
) -> Tensor:
    """Return the tangent g, the direction in which the student's velocity should move, ``[B, ...]`` float64.

    ``J`` = cos t sin t dF/dt along the teacher's ODE (E16). At warm-up ``r`` = 1 both forms are cos t df/dt
    (E17); before that "scm" scales the whole sin t bracket (E18), "rcm" follows the released code of rCM
    (E19).
    """
    state = x.double()
    cos, sin = per_sample(t.cos(), state), per_sample(t.sin(), state)
    error, jvp = F_student.double() - F_teacher.double(), J.double()
    drift = cos * sin * state
    if form == "scm":
        return -(cos.square() * error + r * (drift + jvp))
    share = torch.sqrt(1.0 - (r * sin).square())
    return -(cos * share * error + r * drift + jvp)


def normalise_tangent(g: Tensor, c: float = 0.1) -> Tensor:
    """Return g / (||g|| + c), with the norm over all elements of a sample, float64 (E20)."""
    g = g.double()
    return g / (per_sample(tangent_norm(g), g) + c)


def normalise_rms(g: Tensor, c: float = 0.1) -> Tensor:
    """Return g / (rms(g) + c), with the RMS over all elements of a sample, float64 (E54; NVlabs/FastGen's sCM)."""
    g = g.double()
    return g / (per_sample(g.flatten(1).square().mean(1).sqrt(), g) + c)


def tangent_norm(g: Tensor) -> Tensor:
    """Return ``[B]`` norms of ``g`` before normalisation: the progress metric of consistency training."""
    return g.double().flatten(1).square().sum(1).sqrt()


def consistency_loss(F: Tensor, g: Tensor) -> Tensor:
    """``[B]``: sum of (F - sg[F] - g)^2; its value is ||g||^2, its gradient -2 g (E21)."""
    target = (F.detach() + g).detach().to(torch.promote_types(F.dtype, torch.float32))
    return (F - target).square().flatten(1).sum(1)


def clip_tangent(g: Tensor) -> Tensor:
    """Clip every element of ``g`` to [-1, 1]: sCM's alternative to normalisation (arXiv 2410.11081, section 4.2)."""
    return g.double().clamp(-1.0, 1.0)


def adaptive(loss: Tensor, log_variance: Tensor, weight: Tensor | None = None) -> Tensor:
    """``[B]``: weight e^-lv loss + lv (E35); at the optimal lv every angle has the same expected loss, 1.

    ``loss`` is a sum over the elements of a sample. sCM uses the mean, which shifts lv by the logarithm of their
    number and leaves the network's gradient unchanged.
    """
    weighted = loss if weight is None else weight * loss
    return (-log_variance).exp() * weighted + log_variance


def prior_weight(t: Tensor, like: Tensor) -> Tensor:
    """``[B]``: 1 / tan t (E36; SANA-Sprint's and TBCM's prior factor at unit data variance)."""
    return (1 / t.tan()).to(like.dtype)
