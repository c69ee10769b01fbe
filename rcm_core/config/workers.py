"""Division of a global batch among workers. Raises InputError if it does not divide evenly."""

from __future__ import annotations

from rcm_core.config.sections import ParallelSection, TrainSection
from rcm_core.errors import InputError


def divide_workers(section: ParallelSection, workers: int, where: str) -> None:
    """Raise InputError unless ``workers`` divide into replicas, and into groups that share a state."""
    for name in ("replicas", "context"):
        parts = getattr(section, name)
        if workers % parts:
            raise InputError(
                f"{where}: {workers} workers do not divide by train.parallel.{name} = {parts}; change train.workers or"
                f" train.parallel.{name}"
            )


def parts_per_rank(section: TrainSection, world: int) -> int:
    """Return the parts of a batch that each of ``world`` workers computes; in total ``workers`` x ``accumulate``."""
    return section.workers * section.accumulate // world


def worlds(section: TrainSection, where: str) -> range:
    """Return the numbers of workers that the training may run on; InputError if one does not divide the batch."""
    least = section.workers if section.min_workers is None else section.min_workers
    if least > section.workers:
        raise InputError(
            f"{where}: train.min_workers = {least} is more than train.workers = {section.workers}; lower it, or set"
            " it to null"
        )
    numbers = range(least, section.workers + 1)
    for world in reversed(numbers):
        divide_workers(section.parallel, world, where)
        if section.workers * section.accumulate % world:
            raise InputError(
                f"{where}: {world} workers, which train.min_workers allows, do not divide the {section.workers} x"
                f" {section.accumulate} parts of a batch; change train.accumulate, or raise train.min_workers"
            )
    ranks = section.workers // section.parallel.context
    samples_per_rank(section.batch, ranks, section.accumulate, f"{where}: train.batch")
    return numbers


def samples_per_rank(batch: int, workers: int, accumulate: int, where: str) -> int:
    """Return the samples per rank and accumulation step; InputError if ``batch`` does not divide."""
    size, rest = divmod(batch, workers * accumulate)
    if rest or not size:
        raise InputError(
            f"{where} {batch} does not divide into {workers} workers x {accumulate} accumulation steps;"
            " change the batch, the workers or the accumulation"
        )
    return size
