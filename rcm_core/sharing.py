"""How a training is dealt to its workers: refused where it does not come out even."""

from __future__ import annotations

from rcm_core.config import ParallelSection
from rcm_core.errors import InputError


def divide_workers(section: ParallelSection, workers: int, where: str) -> None:
    """InputError unless ``workers`` divide into replicas, and into groups that share a state."""
    for name in ("replicas", "context"):
        parts = getattr(section, name)
        if workers % parts:
            raise InputError(
                f"{where}: {workers} workers do not divide by train.parallel.{name} = {parts}; change train.workers or"
                f" train.parallel.{name}"
            )


def samples_per_rank(batch: int, workers: int, accumulate: int, where: str) -> int:
    """Samples per rank and accumulation step; InputError if ``batch`` does not divide."""
    size, rest = divmod(batch, workers * accumulate)
    if rest or not size:
        raise InputError(
            f"{where} {batch} does not divide into {workers} workers x {accumulate} accumulation steps;"
            " change the batch, the workers or the accumulation"
        )
    return size
