"""Formulas of distribution matching (DMD, Yin et al. 2023, arXiv 2311.18828; as used by rCM, arXiv 2510.08431).

``matching_term`` of ``rcm_core.objectives.distribution_matching`` calls the networks and forms the loss from them.
"""

from __future__ import annotations

from torch import Tensor

from rcm_core.diffusion.trigflow import per_sample

SMALLEST_WEIGHT = 1e-5


def distribution_gradient(
    xg: Tensor, D_real: Tensor, D_fake: Tensor, floor: float = SMALLEST_WEIGHT
) -> Tensor:
    """Return the pseudo-gradient (D_fake - D_real) / w of the reverse divergence at ``xg``, ``[B, ...]`` float64
    (E24).

    ``D_real`` and ``D_fake`` are the clean predictions of teacher and fake score at the renoised ``xg``; w =
    max(mean |xg - D_real|, floor) for each sample.
    """
    real = D_real.double()
    return (D_fake.double() - real) / _size(xg, real, floor)


def augmentation_gradient(
    xg: Tensor, D_condition: Tensor, D_null: Tensor, alpha: float, floor: float
) -> Tensor:
    """Return the pseudo-gradient -alpha (D_condition - D_null) / w of guidance as a separate loss, ``[B, ...]``
    float64 (E44; CDM, arXiv 2605.06376); w as in ``distribution_gradient`` with ``D_condition``.
    """
    real = D_condition.double()
    return alpha * (D_null.double() - real) / _size(xg, real, floor)


def _size(xg: Tensor, real: Tensor, floor: float) -> Tensor:
    w = (xg.detach().double() - real).abs().flatten(1).mean(1).clamp(min=floor)
    return per_sample(w, real)


def distribution_loss(xg: Tensor, gradient: Tensor) -> Tensor:
    """``[B]``: sum of (xg - sg[xg - gradient])^2; its value is ||gradient||^2, its gradient 2 ``gradient``
    (E25).
    """
    target = (xg.detach() - gradient).detach().to(xg.dtype)
    return (xg - target).square().flatten(1).sum(1)
