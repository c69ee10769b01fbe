"""The average velocity of a rectified flow (MeanFlow), computed with a TrigFlow network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import angle_from_flow_time, flow_time_from_angle, per_sample
from rcm_core.jvp import TangentKind, flash_jvp, jvp
from rcm_core.losses.meanflow import guided_velocity
from rcm_core.objectives.consistency import States
from rcm_core.protocols import Condition, Network

FLOW = RectifiedFlow()
STEP = 5e-3
"""Step of the finite difference that replaces forward-mode AD (FastGen's value for Wan2.1)."""


class FlowState(NamedTuple):
    """A rectified-flow state ``x`` = (1 - tau) x0 + tau eps [B, ...], its time [B], and the velocity ``v`` there."""

    x: Tensor
    tau: Tensor
    v: Tensor


def along(states: States) -> FlowState:
    """Convert TrigFlow ``states`` to rectified-flow variables (E7, E8)."""
    x, t = states.x, states.t
    return FlowState(FLOW.to_network(x, t)[0], flow_time_from_angle(t), FLOW.output(x, t, states.direction))


class AverageVelocity(NamedTuple):
    """Average velocity u(x, tau) of ``network`` between flow times ``end`` [B], an embedded input, and tau."""

    network: Network
    condition: Condition
    end: Tensor

    def __call__(self, x: Tensor, tau: Tensor) -> Tensor:
        """Return u ``[B, ...]`` at rectified-flow state ``x`` and time ``tau`` [B]."""
        t = angle_from_flow_time(tau)
        state = per_sample(t.cos() + t.sin(), x) * x
        F = self.network(state, t, {**self.condition, "end": self.end.to(x.dtype)})
        return FLOW.output(state, t, F)

    @torch.no_grad()
    def derivative(self, state: FlowState, kind: TangentKind) -> Tensor:
        """Return du/dtau along (v, 0, 1) by forward-mode AD, or by a finite difference, as ``kind`` says.

        The difference is central; it is one-sided if the other side is outside [end, 1], and 0 if both are.
        """
        x, tau, v = state
        if kind == "exact":
            with flash_jvp():
                return jvp(self.__call__, (x, tau), (v.to(x.dtype), torch.ones_like(tau)))[1]
        h = torch.full_like(tau, STEP)
        up, down = h * (tau + h <= 1), h * (tau - h > self.end)
        later = self(x + per_sample(up, x) * v, tau + up)
        earlier = self(x - per_sample(down, x) * v, tau - down)
        return (later - earlier) / per_sample((up + down).clamp(min=STEP), x)


@torch.no_grad()
def guide(
    network: Network,
    state: FlowState,
    conditions: tuple[Condition, Condition],
    mix: tuple[float, float],
    rows: Tensor,
) -> FlowState:
    """Return ``state`` with its velocity guided by ``network`` in ``rows`` [B] (E50).

    ``conditions``: the state's own and the null condition; ``mix``: omega and kappa.
    """
    own, null = (AverageVelocity(network, c, state.tau)(state.x, state.tau) for c in conditions)
    mixed = guided_velocity(state.v, own, null, *mix)
    return state._replace(v=torch.where(per_sample(rows, mixed).bool(), mixed, state.v))
