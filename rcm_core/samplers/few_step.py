"""The student's sampler (E28): denoise, then renoise (Song et al. 2023, arXiv 2303.01469, algorithm 1) or go on along
the line that is left (Euler's step, DDIM); denoise.
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
"""Angles from here to pi/2, and above it by rounding, mean pi/2: nobody writes all its digits."""
ROUNDING = 1e-4


@dataclass(frozen=True)
class Sampler:
    """How a student is sampled; made by ``of``, which checks it."""

    kind: Kind
    times: tuple[tuple[float, ...], ...]
    """One list of descending angles for each number of steps; the list of length n is that of n steps."""

    @classmethod
    def of(cls, kind: str, times: Sequence[Sequence[float]]) -> Sampler:
        """InputError names what is wrong with ``sampler.kind`` or ``sampler.times``."""
        known: dict[str, Kind] = {name: name for name in get_args(Kind)}
        if kind not in known:
            raise InputError(f"sampler.kind = {kind!r}; expected {' or '.join(known)}")
        if not times:
            raise InputError("sampler.times is empty; give a list of angles for each number of steps")
        exact = tuple(tuple(exact_angle(angle) for angle in angles) for angles in times)
        for given, angles in zip(times, exact):
            if not _descend(angles):
                raise InputError(
                    f"sampler.times has {list(given)}; expected angles that descend, from at most pi/2"
                    f" (written 1.5708; {PURE} and above mean it) to above 0: mend that list"
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
        """The numbers of steps that there are times for, ascending."""
        return tuple(sorted(len(angles) for angles in self.times))

    def angles(self, steps: int) -> tuple[float, ...]:
        """The times of ``steps`` steps; InputError if there are none."""
        found = next((angles for angles in self.times if len(angles) == steps), None)
        if found is None:
            raise InputError(
                f"{_count(steps)} asked for, but sampler.times has lists for {', '.join(map(str, self.steps))};"
                f" ask for one of these, or add a list of {steps} to sampler.times"
            )
        return found

    def draws(self, steps: int) -> int:
        """Noise tensors that ``steps`` steps need; the first is the initial state."""
        return steps if self.kind == "renoise" else 1


@torch.no_grad()
def renoise_steps(velocity: Velocity, noise: Tensor, condition: Condition, angles: Tensor) -> Tensor:
    """State at the last angle, before the last denoising; no gradient.

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
    """State at the last of ``angles`` [n, B] from ``x`` [B, ...] at the first, by steps of (E5): Euler's on a
    rectified flow.
    """
    for here, after in pairwise(angles):
        x = rotate(x, here, after, velocity(x, here, condition))
    return x


def first_state(velocity: Velocity, z: Tensor, t: Tensor) -> Tensor:
    """State at angles ``t`` [B] whose network input is unit noise ``z`` [B, ...], as a pipeline begins (E28).

    (cos t + sin t) z for a rectified flow, z for a variance-preserving network (TrigFlow, EDM). A ``velocity`` without
    a parameterisation counts as a rectified flow, as every published student is.
    """
    parameterisation: Parameterisation = getattr(velocity, "parameterisation", RectifiedFlow())
    scale, _ = parameterisation.to_network(torch.ones_like(t), t)
    return per_sample(1 / scale, z) * z


def simulate_to_last_step(
    velocity: Velocity, noise: Tensor, condition: Condition, angles: Tensor, kind: Kind
) -> Tensor:
    """State at the last of ``angles`` [n, B], before the last denoising, from unit ``noise`` [draws, B, ...]; no
    gradient.
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
    """Samples ``x0`` [B, ...] in ``len(angles)`` network calls.

    ``noise`` [draws, B, ...] is unit noise, so that the caller can seed every sample by its own id and no sample
    depends on the others in its batch: one for each angle to renoise, one for ``euler``. ``angles`` descend from at
    most pi/2. InputError if they disagree.
    """
    needed = len(angles) if kind == "renoise" else 1
    if len(noise) != needed or not angles:
        raise InputError(
            f"{len(angles)} angles ({kind}) but noise for {len(noise)} steps; give one noise tensor for each"
            " angle, or a single one for euler"
        )
    if not _descend(angles):
        raise InputError(f"angles {tuple(angles)} must descend, from noise (pi/2) towards data (0)")
    schedule = fixed_angles(angles, noise.shape[1], noise.device)
    x = simulate_to_last_step(velocity, noise, condition, schedule, kind)
    return predict_x0(x, schedule[-1], velocity(x, schedule[-1], condition))


def exact_angle(angle: float) -> float:
    """pi/2 for what means it."""
    return NOISE_ANGLE if PURE <= angle <= NOISE_ANGLE + ROUNDING else float(angle)


def _descend(angles: Sequence[float]) -> bool:
    """Whether there are angles and pi/2 >= angles[0] > ... > 0; false for what is not a number."""
    rim = math.nextafter(NOISE_ANGLE, 2)
    return bool(angles) and all(before > after for before, after in pairwise((rim, *angles, 0.0)))


def _count(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"
