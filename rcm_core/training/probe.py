"""Probes: the student's one-step samples from fixed noise, compared with the teacher's samples.

The conditions and the teacher's latents come from held-out trajectories. Probes need neither judge nor decoder, so
every family can be probed at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_core.diffusion.trigflow import NOISE_ANGLE
from rcm_core.monitoring.early_stopping import ProbeResult
from rcm_core.networks.denoiser import Denoiser
from rcm_core.protocols import Condition, Examples
from rcm_core.rng import generator
from rcm_core.samplers.few_step import sample_student
from rcm_core.training.ema import PowerEMA
from rcm_core.training.parallel.collectives import of_first_rank, reshard

CELLS = 2**20
"""Latent values per network call: the same for any number of ranks, so that results are bitwise equal."""
BLOCK = 2**16


@dataclass(frozen=True)
class Probe:
    """Fixed conditions and noise. Every rank computes all samples because each call of a sharded network is a
    collective.
    """

    held: Examples
    seed: int
    every: int
    device: torch.device
    world: int
    guidance: float | None = None
    """Guidance scale, for a student with a guidance embedding."""

    def read(self, step: int, student: Denoiser, ema: PowerEMA) -> ProbeResult:
        """Probe the student at ``step`` without changing it.

        The probe samples the shortest EMA, which a candidate would be now. The raw weights fluctuate from step to
        step by more than training improves them between two probes.
        """
        reshard(student)
        training = student.training
        student.eval()
        with ema.instead(student, min(ema.exponents)):
            samples = self.samples(student)
            reshard(student)
        student.train(training)
        values = [math.nan] * 4
        if bool(samples.isfinite().all()):
            values = [score(samples, self.held.x0), *drift(samples, self.held.x0)]
        return ProbeResult.of(step, of_first_rank(values, self.world, self.device))

    def samples(self, student: Denoiser) -> Tensor:
        """Return one-step samples for the held-out conditions, float32 on the CPU."""
        x0 = self.held.x0
        noise = torch.stack(
            [torch.randn(x0.shape[1:], generator=generator(self.seed, "probe", i)) for i in range(len(x0))]
        )
        size = max(1, CELLS // x0[0].numel())
        parts = [self._part(student, noise, slice(i, i + size)) for i in range(0, len(x0), size)]
        return torch.cat(parts)

    def _part(self, student: Denoiser, noise: Tensor, rows: slice) -> Tensor:
        z = noise[rows].to(self.device)
        condition: Condition = {name: v[rows].to(self.device) for name, v in self.held.condition.items()}
        if self.guidance is not None:
            condition = {**condition, "guidance": z.new_full((len(z),), self.guidance)}
        return sample_student(student, z[None], condition, (NOISE_ANGLE,)).float().cpu()


def score(samples: Tensor, held: Tensor) -> float:
    """Return the energy distance (E70) of ``samples`` to ``held``, [n, ...], over the mean distance within ``held``.

    Row i of both has the same condition. Only pairs of different rows enter, so the estimate is unbiased: of either
    sign if both have the same distribution, and exactly 0 if they are equal.
    """
    across, within, reference = (
        _distances(a, b) for a, b in ((samples, held), (samples, samples), (held, held))
    )
    different = ~torch.eye(len(samples), dtype=torch.bool)
    distance = (2 * across - within - reference)[different].mean()
    return float(distance / reference[different].mean())


def drift(samples: Tensor, held: Tensor) -> tuple[float, float, float]:
    """Return brightness, contrast and the larger magnitude of both (E71); ``samples`` and ``held`` are [n, C, ...]."""
    (mean, deviation), (teacher, contrast) = (_moments(x) for x in (samples, held))
    unit = contrast.square().mean().sqrt()
    brighter, stronger = (mean - teacher) / unit, (deviation - contrast) / unit
    size = max(float(brighter.abs().mean()), float(stronger.abs().mean()))
    return float(brighter.mean()), float(stronger.mean()), size


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel, over samples and positions, float64."""
    deviation, mean = torch.std_mean(x.double().transpose(0, 1).flatten(1), dim=1)
    return mean, deviation


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances [n, m] in float64, computed in blocks because video latents are long."""
    square = torch.zeros(len(a), len(b), dtype=torch.float64)
    for left, right in zip(torch.split(a.flatten(1), BLOCK, 1), torch.split(b.flatten(1), BLOCK, 1)):
        # the matmul form loses half the digits of small distances
        part = torch.cdist(left.double(), right.double(), compute_mode="donot_use_mm_for_euclid_dist")
        square += part.square()
    return square.sqrt()
