"""The teacher's sampler: the probability-flow ODE solved by diffusers' own schedulers, on rectified-flow
states.

The schedule (1000 train steps, shift, spacing) is the scheduler's own, so a teacher is sampled exactly as by the
pipeline it was published in. The only difference is that the network is called through its TrigFlow velocity,
an exact conversion (E7, E8).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import angle_from_flow_time, per_sample
from rcm_core.errors import InputError
from rcm_core.protocols import Condition, Velocity
from rcm_core.samplers.rollout import Trajectory

Solver = Literal["euler", "unipc", "dpmsolver++"]
Grid = Literal["scheduler", "linear", "karras"]
"""Flow times of Euler's steps (E14). scheduler: FlowMatchEulerDiscreteScheduler's own for a number of steps, which it
shifts twice (SD3). linear: 1, ..., 1 / steps, shifted once (LongCat-Image). karras: sigma / (1 + sigma) at the noise
levels of arXiv 2206.00364, equation 5, from 80 to 0.002, not shifted (Cosmos-Predict2).
"""

KARRAS_SIGMAS = 80.0, 0.002
"""First and last noise level of diffusers' Cosmos2TextToImagePipeline."""
KARRAS_RHO = 7.0


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
    grid: Grid = "scheduler",
) -> Tensor:
    """Sample ``x0`` [B, ...] from unit ``noise`` [B, ...] in ``steps`` calls of ``velocity`` (E14).

    InputError for an unknown solver or grid, and for a grid that the solver does not support.
    """
    last = noise
    for step in _solve(velocity, noise, condition, steps, shift, solver, grid):
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
    grid: Grid = "scheduler",
) -> Trajectory:
    """Run ``sample_teacher`` and record every state, angle and velocity in TrigFlow terms."""
    route = list(_solve(velocity, noise, condition, steps, shift, solver, grid))
    return Trajectory(
        torch.stack([step.x for step in route]),
        torch.stack([step.t for step in route]),
        torch.stack([step.F for step in route]),
        route[-1].next,
    )


def grid_flaw(solver: str, grid: str) -> str | None:
    """Return why this solver cannot use this grid; None if it can."""
    for name, known, kind in ((solver, Solver, "solver"), (grid, Grid, "grid")):
        if name not in get_args(known):
            return f"unknown {kind} {name!r}; choose {' or '.join(get_args(known))}"
    if solver != "euler" and grid != "scheduler":
        return f"grid = {grid!r} needs the solver 'euler', but the solver is {solver!r}; set the grid to 'scheduler'"
    return None


@torch.no_grad()
def _solve(
    velocity: Velocity,
    noise: Tensor,
    condition: Condition,
    steps: int,
    shift: float,
    solver: Solver,
    grid: Grid,
) -> Iterator[_Step]:
    if flaw := grid_flaw(solver, grid):
        raise InputError(flaw)
    scheduler = _scheduler(solver, shift, grid)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    flow = RectifiedFlow()
    # Cosmos' pipeline begins at sigma eps, which is tau eps in rectified-flow variables
    state = scheduler.sigmas[0] * noise if grid == "karras" else noise
    for tau, timestep in zip(scheduler.sigmas.double(), scheduler.timesteps):
        # the scheduler may round its timestep to an integer; its formulas use sigma
        t = angle_from_flow_time(tau).expand(len(noise)).to(noise.device)
        x = per_sample(t.cos() + t.sin(), state) * state
        F = velocity(x, t, condition)
        state = scheduler.step(flow.output(x, t, F), timestep, state, return_dict=False)[0]
        yield _Step(x, t[0], F, state)


def _scheduler(solver: Solver, shift: float, grid: Grid = "linear") -> Any:
    """Build a diffusers scheduler whose ``set_timesteps(steps)`` sets the times; ``grid`` is that of Euler steps."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    if solver == "euler":
        return _euler(shift, grid)
    kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
    return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def _euler(shift: float, grid: Grid) -> Any:
    """Build a FlowMatchEulerDiscreteScheduler with the times of ``grid``, as pipelines pass them."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    if grid == "scheduler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)

    class Given(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def set_timesteps(self, steps: int) -> None:
            times = linear_times(steps) if grid == "linear" else karras_times(steps)
            super().set_timesteps(sigmas=times.tolist())

    return Given(shift=shift if grid == "linear" else 1.0)


def linear_times(steps: int) -> Tensor:
    """Return flow times 1, 1 - 1 / steps, ..., 1 / steps before the shift; [steps], float64."""
    return torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64)


def karras_times(steps: int) -> Tensor:
    """Return flow times sigma / (1 + sigma) of the noise levels of arXiv 2206.00364, equation 5; [steps], float64."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = (float(sigma ** (1 / KARRAS_RHO)) for sigma in KARRAS_SIGMAS)
    sigma: Tensor = (high + ramp * (low - high)) ** KARRAS_RHO
    return sigma / (1 + sigma)
