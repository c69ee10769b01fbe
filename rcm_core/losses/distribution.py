"""Distribution matching (DMD, Yin et al. 2023, arXiv 2311.18828; as used by rCM, arXiv 2510.08431)."""

from __future__ import annotations

from torch import Tensor

from rcm_core.trigflow import per_sample

SMALLEST_WEIGHT = 1e-5


def distribution_gradient(xg: Tensor, D_real: Tensor, D_fake: Tensor) -> Tensor:
    """The pseudo-gradient (D_fake - D_real) / w of the reverse divergence at ``xg``, ``[B, ...]`` float64
    (E24).

    ``D_real`` and ``D_fake`` are the clean predictions of teacher and fake score at the renoised ``xg``; w =
    max(mean |xg - D_real|, 1e-5) for each sample.
    """
    real = D_real.double()
    w = (xg.detach().double() - real).abs().flatten(1).mean(1).clamp(min=SMALLEST_WEIGHT)
    return (D_fake.double() - real) / per_sample(w, real)


def distribution_loss(xg: Tensor, gradient: Tensor) -> Tensor:
    """``[B]``: sum of (xg - sg[xg - gradient])^2; its value is ||gradient||^2, its gradient 2 ``gradient``
    (E25).
    """
    target = (xg.detach() - gradient).detach().to(xg.dtype)
    return (xg - target).square().flatten(1).sum(1)
