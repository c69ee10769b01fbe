"""The teacher's sampler: the probability-flow ODE solved by diffusers' own schedulers, on rectified-flow
states.

The schedule (1000 train steps, shift, spacing) is the scheduler's own, so a teacher is sampled exactly as the
pipeline it was published in would sample it; only the network is reached through its TrigFlow velocity,
converted exactly (E7, E8).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.parameterisation import RectifiedFlow
from rcm_core.protocols import Condition, Velocity
from rcm_core.trigflow import angle_from_flow_time, per_sample

Solver = Literal["euler", "unipc"]


class Route(NamedTuple):
    """A whole solution: states and velocities ``[N, B, ...]`` at descending angles ``t`` [N], and where it
    ends.
    """

    x: Tensor
    t: Tensor
    F: Tensor
    x0: Tensor


class _Step(NamedTuple):
    x: Tensor
    t: Tensor
    F: Tensor
    next: Tensor


def sample_teacher(
    velocity: Velocity,
    noise: Tensor,
    condition: Condition,
    *,
    steps: int,
    shift: float,
    solver: Solver = "euler",
) -> Tensor:
    """``x0`` [B, ...] from unit ``noise`` [B, ...] in ``steps`` calls of ``velocity`` (E14)."""
    last = noise
    for step in _solve(velocity, noise, condition, steps, shift, solver):
        last = step.next
    return last


def sample_route(
    velocity: Velocity,
    noise: Tensor,
    condition: Condition,
    *,
    steps: int,
    shift: float,
    solver: Solver = "euler",
) -> Route:
    """As ``sample_teacher``, with every state, angle and velocity on the way in TrigFlow terms."""
    route = list(_solve(velocity, noise, condition, steps, shift, solver))
    return Route(
        torch.stack([step.x for step in route]),
        torch.stack([step.t for step in route]),
        torch.stack([step.F for step in route]),
        route[-1].next,
    )


@torch.no_grad()
def _solve(
    velocity: Velocity, noise: Tensor, condition: Condition, steps: int, shift: float, solver: Solver
) -> Iterator[_Step]:
    scheduler = _scheduler(solver, shift)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    flow = RectifiedFlow()
    state = noise
    for tau, timestep in zip(scheduler.sigmas.double(), scheduler.timesteps):
        # the scheduler's own timestep may be rounded to an integer; sigma is what its formulas use
        t = angle_from_flow_time(tau).expand(len(noise)).to(noise.device)
        x = per_sample(t.cos() + t.sin(), state) * state
        F = velocity(x, t, condition)
        state = scheduler.step(flow.output(x, t, F), timestep, state, return_dict=False)[0]
        yield _Step(x, t[0], F, state)


def _scheduler(solver: Solver, shift: float) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    match solver:
        case "euler":
            return FlowMatchEulerDiscreteScheduler(shift=shift)
        case "unipc":
            return UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
            )
        case _:
            raise InputError(f"unknown solver {solver!r}; choose euler or unipc")
