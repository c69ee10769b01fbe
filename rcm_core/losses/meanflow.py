"""MeanFlow: the average velocity between two times (Geng et al. 2025, arXiv 2505.13447)."""

from __future__ import annotations

from torch import Tensor

from rcm_core.diffusion.trigflow import per_sample


def average_velocity_target(v: Tensor, derivative: Tensor, tau: Tensor, end: Tensor, r: float) -> Tensor:
    """Return v - r (tau - end) du/dtau (E42): the target of the average velocity u between ``end`` and ``tau`` [B].

    ``derivative`` is du/dtau along (v, 0, 1); ``r`` in [0, 1] warms it up.
    """
    return v - per_sample(r * (tau - end), v) * derivative


def guided_velocity(v: Tensor, conditional: Tensor, null: Tensor, omega: float, kappa: float) -> Tensor:
    """Return omega v + kappa u_cond + (1 - omega - kappa) u_null (E50): guidance of scale omega / (1 - kappa)."""
    return omega * v + kappa * conditional + (1 - omega - kappa) * null


def meanflow_loss(u: Tensor, target: Tensor, power: float, c: float) -> Tensor:
    """``[B]``: e / sg[(e + c)^power] with e = |u - sg[target]|^2 (E43; section 4.3)."""
    error = (u - target.detach()).square().flatten(1).sum(1)
    return error / (error.detach() + c).pow(power)


def normalised_loss(u: Tensor, target: Tensor, power: float, c: float) -> Tensor:
    """``[B]``: |u - sg[u + g]|^2, g = (target - u) / (sqrt(D) (rms + c)^power) of D elements (E51)."""
    residual = (target - u).detach()
    rms = residual.flatten(1).square().mean(1).sqrt()
    scale = residual[0].numel() ** 0.5 * (rms + c).pow(power)
    return (u - u.detach() - residual / per_sample(scale, residual)).square().flatten(1).sum(1)
