"""The student's sampler (E28): denoise, then renoise (Song et al. 2023, arXiv 2303.01469, algorithm 1) or take a
deterministic Euler step (DDIM), and so on; the last step denoises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.timesteps import fixed_angles
from rcm_core.diffusion.trigflow import NOISE_ANGLE, diffuse, per_sample, predict_x0, rotate
from rcm_core.errors import InputError
from rcm_core.protocols import Condition, Parameterisation, Velocity

Kind = Literal["renoise", "euler"]
PURE = 1.5707
"""Smallest angle that is read as pi/2, so that params can write 1.5708; rounding above pi/2 is allowed."""
ROUNDING = 1e-4


@dataclass(frozen=True)
class Sampler:
    """Kind and times of a student's sampler; build it with ``of``, which validates them."""

    kind: Kind
    times: tuple[tuple[float, ...], ...]
    """Lists of descending angles; the list of length n has the times of n steps."""

    @classmethod
    def of(cls, kind: str, times: Sequence[Sequence[float]]) -> Sampler:
        """Build a sampler; InputError names an invalid ``sampler.kind`` or ``sampler.times``."""
        known: dict[str, Kind] = {name: name for name in get_args(Kind)}
        if kind not in known:
            raise InputError(f"sampler.kind = {kind!r}; expected {' or '.join(known)}")
        if not times:
            raise InputError("sampler.times is empty; give a list of angles for each number of steps")
        exact = tuple(tuple(exact_angle(angle) for angle in angles) for angles in times)
        for raw, angles in zip(times, exact):
            if not _descend(angles):
                raise InputError(
                    f"sampler.times has {list(raw)}; expected angles that descend, from at most pi/2"
                    f" (written 1.5708; {PURE} and above mean it) to above 0: correct that list"
                )
        lengths = [len(angles) for angles in exact]
        twice = next((n for n in lengths if lengths.count(n) > 1), None)
        if twice is not None:
            raise InputError(
                f"sampler.times has several lists of {twice} angles; keep one for {_count(twice)}"
            )
        return cls(known[kind], exact)

    @property
    def steps(self) -> tuple[int, ...]:
        """Step counts with times, ascending."""
        return tuple(sorted(len(angles) for angles in self.times))

    def angles(self, steps: int) -> tuple[float, ...]:
        """Return the times of ``steps`` steps; InputError if ``sampler.times`` has none."""
        chosen = next((angles for angles in self.times if len(angles) == steps), None)
        if chosen is None:
            raise InputError(
                f"{_count(steps)} asked for, but sampler.times has lists for {', '.join(map(str, self.steps))};"
                f" ask for one of these, or add a list of {steps} angles to sampler.times"
            )
        return chosen

    def draws(self, steps: int) -> int:
        """Return the number of noise tensors for ``steps`` steps; the first is the initial state."""
        return steps if self.kind == "renoise" else 1


@torch.no_grad()
def renoise_steps(velocity: Velocity, noise: Tensor, condition: Condition, angles: Tensor) -> Tensor:
    """Return the state at the last angle, before the last denoising; no gradient.

    ``noise`` [n, B, ...] is unit noise, one per angle: the first is the initial state, the others renoise.
    ``angles`` [n, B] descend.
    """
    x = noise[0]
    for i in range(len(angles) - 1):
        x0 = predict_x0(x, angles[i], velocity(x, angles[i], condition))
        x = diffuse(x0, noise[i + 1], angles[i + 1])
    return x


@torch.no_grad()
def euler_steps(velocity: Velocity, x: Tensor, condition: Condition, angles: Tensor) -> Tensor:
    """Return the state at the last of ``angles`` [n, B] from ``x`` [B, ...] at the first.

    The steps are (E5), which are Euler steps on a rectified flow.
    """
    for here, after in pairwise(angles):
        x = rotate(x, here, after, velocity(x, here, condition))
    return x


def first_state(velocity: Velocity, z: Tensor, t: Tensor) -> Tensor:
    """Return the state at angles ``t`` [B] whose network input is unit noise ``z`` [B, ...]: a pipeline's first (E28).

    (cos t + sin t) z for a rectified flow, z for a variance-preserving network (TrigFlow, EDM). A ``velocity`` without
    a parameterisation counts as a rectified flow, like every published student.
    """
    parameterisation: Parameterisation = getattr(velocity, "parameterisation", RectifiedFlow())
    scale, _ = parameterisation.to_network(torch.ones_like(t), t)
    return per_sample(1 / scale, z) * z


def simulate_to_last_step(
    velocity: Velocity, noise: Tensor, condition: Condition, angles: Tensor, kind: Kind
) -> Tensor:
    """Return the state at the last of ``angles`` [n, B], before the last denoising, from unit ``noise``
    [draws, B, ...]; no gradient.
    """
    x = first_state(velocity, noise[0], angles[0])
    if kind == "renoise":
        return renoise_steps(velocity, torch.cat([x[None], noise[1:]]), condition, angles)
    return euler_steps(velocity, x, condition, angles)


@torch.no_grad()
def sample_student(
    velocity: Velocity,
    noise: Tensor,
    condition: Condition,
    angles: Sequence[float],
    kind: Kind = "renoise",
) -> Tensor:
    """Sample ``x0`` [B, ...] in ``len(angles)`` network calls.

    ``noise`` [draws, B, ...] is unit noise: one draw per angle to renoise, one for ``euler``. The caller can seed every
    sample by its own id, so no sample depends on the others in its batch. ``angles`` descend from at most pi/2.
    InputError if noise and angles do not match.
    """
    needed = len(angles) if kind == "renoise" else 1
    if len(noise) != needed or not angles:
        raise InputError(
            f"the sampler got {len(angles)} angles ({kind}) but {len(noise)} noise tensors; pass one noise tensor for"
            " each angle, or a single one for euler"
        )
    if not _descend(angles):
        raise InputError(
            f"angles are {tuple(angles)}; pass angles that descend from noise (pi/2) towards data (0)"
        )
    schedule = fixed_angles(angles, noise.shape[1], noise.device)
    x = simulate_to_last_step(velocity, noise, condition, schedule, kind)
    return predict_x0(x, schedule[-1], velocity(x, schedule[-1], condition))


def exact_angle(angle: float) -> float:
    """Return pi/2 for an angle of at least ``PURE`` up to rounding, else ``angle`` itself."""
    return NOISE_ANGLE if PURE <= angle <= NOISE_ANGLE + ROUNDING else float(angle)


def _descend(angles: Sequence[float]) -> bool:
    """Return whether pi/2 >= angles[0] > ... > 0; False for an empty list or NaN."""
    rim = math.nextafter(NOISE_ANGLE, 2)
    return bool(angles) and all(before > after for before, after in pairwise((rim, *angles, 0.0)))


def _count(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"
