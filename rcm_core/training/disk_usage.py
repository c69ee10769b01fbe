"""Disk space that a training needs, estimated from the shapes of the network's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

from safetensors import safe_open

from rcm_core.config.sections import TrainSection

MOMENTS = {"adamw": 8.0, "adamw8bit": 2.03}
"""Bytes of optimiser state per weight."""
TRAINED_ROLES = 2
"""Networks with an optimiser: the student and, at most, a fake score."""
CHECKPOINTS = 3
"""Number of checkpoints on disk at once: two are kept while a third is written."""


def shapes_of(files: Iterable[Path]) -> list[tuple[int, ...]]:
    """Return the shapes of all tensors in safetensors files; only headers are read."""
    shapes: list[tuple[int, ...]] = []
    for path in files:
        with safe_open(path, "pt") as stream:
            shapes += [tuple(stream.get_slice(name).get_shape()) for name in stream.keys()]  # noqa: SIM118
    return shapes


def trained_weights(section: TrainSection, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the number of weights of a trained role; with LoRA an upper bound, as if every matrix were adapted."""
    if section.lora is None:
        return sum(prod(shape) for shape in shapes)
    return sum(section.lora.rank * (shape[0] + shape[1]) for shape in shapes if len(shape) == 2)


def candidate_bytes(section: TrainSection, precision: str, trained: int) -> int:
    """Return the bytes of a candidate; ``precision`` is the teacher's. LoRA matrices are float32."""
    low = (section.candidate_precision or precision) == "bfloat16" and section.lora is None
    return (2 if low else 4) * trained


def count_candidates(section: TrainSection) -> int:
    """Return the number of candidates on disk at the end of the training."""
    steps = -(-section.iterations // section.candidate_every)
    return len(section.ema_lengths) * min(steps, section.keep_candidates or steps)


def checkpoint_bytes(section: TrainSection, trained: int) -> int:
    """Return the bytes of a checkpoint: weights and moments of every trained role, and the student's EMAs."""
    return round(trained * (TRAINED_ROLES * (4 + MOMENTS[section.optimiser]) + 4 * len(section.ema_lengths)))
