"""Hours of a training and of the teacher's trajectories, from their operations."""

from __future__ import annotations

from typing import NamedTuple

from rcm_core.config.sections import Params
from rcm_core.diffusion.guidance import calls_per_step
from rcm_core.preflight.estimate import Estimate
from rcm_core.preflight.gpus import Gpu


class Cost(NamedTuple):
    """Duration and operations on ``gpus`` of one kind."""

    operations: float
    hours: float
    gpu_hours: float


def training_cost(found: Estimate, params: Params, gpu: Gpu, utilisation: float) -> Cost:
    """Return the cost of all iterations with recomputation; ``utilisation``: share of the GPU's peak rate."""
    train = params.train
    each = found.flops * train.iterations
    hours = each / (utilisation * gpu.rate(train.parallel.precision)) / 3600
    return Cost(each * train.workers, hours, hours * train.workers)


def trajectories_cost(found: Estimate, params: Params, gpu: Gpu, utilisation: float) -> Cost:
    """Return the cost of the teacher's samples on the training's GPUs, in ``teacher.precision``; zero for imports.

    Guidance other than 1 takes two velocities for each step.
    """
    teacher, section = params.teacher, params.trajectories
    samples = section.samples if section.source is None else 0
    velocities = samples * teacher.steps * calls_per_step(teacher.guidance)
    # the ranks that share a state have rehearsed their parts of its velocity
    operations = velocities * found.velocity * params.train.parallel.context
    gpu_hours = operations / (utilisation * gpu.rate(teacher.precision)) / 3600
    return Cost(operations, gpu_hours / params.train.workers, gpu_hours)
