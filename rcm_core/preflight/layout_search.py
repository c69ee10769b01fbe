"""Search for the cheapest layout of a training on its GPUs that fits, by rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rcm_core.config.method_requirements import offloadable
from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.preflight.dry_runs import Rehearsals
from rcm_core.preflight.estimate import Estimate, estimate, overrides
from rcm_core.preflight.gpus import Gpu
from rcm_core.preflight.teacher_spec import Model
from rcm_core.training.distill import build_method

SHARE = 0.92
"""Usable share of a GPU's memory; CUDA, NCCL and fragmentation take the rest."""
CONTEXTS = (1, 2, 4, 8)
"""Most GPUs that may share a state: one node, with fast exchange."""


class Choice(NamedTuple):
    """A tried layout."""

    params: Params
    estimate: Estimate

    def fits(self, gpu: Gpu) -> bool:
        return self.estimate.peak <= SHARE * gpu.memory

    @property
    def overrides(self) -> list[str]:
        """Return the settings of the layout."""
        return overrides(self.params)


class Search(NamedTuple):
    """Result of a search."""

    best: Choice | None
    """Cheapest layout that fits."""
    least: Choice | None
    """Layout that needs least memory, if none fits."""


Attempt = Callable[[Params], Choice | None]
"""Function that tries a layout; None if a training would refuse it."""


def choose(params: Params, gpu: Gpu, attempt: Attempt) -> Search:
    """The cheapest way of these ``params`` that fits ``gpu``, with as many workers.

    Cheapest is, in this order: no network in the machine's memory (offload), for which each of its passes waits; the
    fewest GPUs that share a state (context 1, 2, 4, 8), because each attention waits for its exchange; the least that
    backward makes again (none, matmuls, blocks); the fewest parts of a batch (accumulate); the most replicas, whose
    groups gather their weights from few neighbours. Context must divide heads, tokens and workers.
    """
    least: Choice | None = None
    for away in _offloads(params):
        found = _laid_over(_parallel(params, offload=away), gpu, attempt)
        if found.best is not None:
            return found
        if least is None or (found.least is not None and found.least.estimate.peak < least.estimate.peak):
            least = found.least
    return Search(None, least)


def _laid_over(params: Params, gpu: Gpu, attempt: Attempt) -> Search:
    """Try a layout with the offloaded networks of ``params``."""
    least: Choice | None = None
    for context in _contexts(params.train.workers):
        size, rest = divmod(params.train.batch, params.train.workers // context)
        light = None if rest or not size else attempt(_change(params, context, "blocks", size))
        if light is None:
            continue
        if least is None or light.estimate.peak < least.estimate.peak:
            least = light
        for checkpointing in ("none", "matmuls", "blocks") if light.fits(gpu) else ():
            found = _fewest_parts(_change(params, context, checkpointing, 1), gpu, attempt)
            if found is not None:
                return Search(_replicate(found, gpu, attempt), None)
    return Search(None, least)


def attempts(model: Model, rehearsals: Rehearsals) -> Attempt:
    """Return a function that tries a layout by rehearsal, each layout once."""
    known: dict[str, Choice | None] = {}

    def attempt(params: Params) -> Choice | None:
        key = params.train.model_dump_json()
        if key not in known:
            try:
                known[key] = Choice(params, estimate(model, params, rehearsals=rehearsals))
            except InputError:
                known[key] = None
        return known[key]

    return attempt


def workers_needed(choice: Choice, gpu: Gpu) -> int | None:
    """Return the number of GPUs whose shards let the lightest layout fit; None if sharding does not help."""
    found, workers = choice.estimate, choice.params.train.workers
    shards = sum(found.held.values()) + found.phases[found.top].gradients
    rest = SHARE * gpu.memory - (found.peak - shards)
    if rest <= 0:
        return None
    needed = workers
    while shards * workers / needed > rest:
        needed *= 2
    return needed


def _fewest_parts(params: Params, gpu: Gpu, attempt: Attempt) -> Choice | None:
    """Try the smallest ``accumulate`` that fits; memory falls linearly with the samples of a part."""
    rank = params.train.batch // (params.train.workers // params.train.parallel.context)
    parts = [n for n in range(1, rank + 1) if rank % n == 0]
    first = attempt(params)
    if first is None or rank == 1 or first.fits(gpu):
        return first if first is not None and first.fits(gpu) else None
    last = attempt(split_batch(params, rank))
    if last is None or not last.fits(gpu):
        return None
    slope = (first.estimate.peak - last.estimate.peak) / (rank - 1)
    for n in parts[1:-1]:
        if last.estimate.peak + slope * (rank // n - 1) <= SHARE * gpu.memory:
            found = attempt(split_batch(params, n))
            if found is not None and found.fits(gpu):
                return found
    return last


def _replicate(choice: Choice, gpu: Gpu, attempt: Attempt) -> Choice:
    """Try the most replicas that fit."""
    workers = choice.params.train.workers
    found = choice.estimate
    shards = sum(found.held.values()) + found.phases[found.top].gradients
    for replicas in (n for n in range(workers, 1, -1) if workers % n == 0):
        if found.peak + (replicas - 1) * shards <= SHARE * gpu.memory:
            params = _parallel(choice.params, replicas=replicas)
            more = attempt(params)
            if more is not None and more.fits(gpu):
                return more
    return choice


def _offloads(params: Params) -> Iterator[tuple[str, ...]]:
    """Yield the sets of offloaded networks: none, then one more each."""
    yield ()
    if params.train.lora is None:
        every = offloadable(build_method(params.method, params.train.tangent).requirements)
        yield from (every[: count + 1] for count in range(len(every)))


def _contexts(workers: int) -> Iterator[int]:
    return (n for n in CONTEXTS if workers % n == 0)


def _change(params: Params, context: int, checkpointing: str, accumulate: int) -> Params:
    return split_batch(
        _parallel(params, context=context, checkpointing=checkpointing, replicas=1), accumulate
    )


def _parallel(params: Params, **changes: object) -> Params:
    parallel = params.train.parallel.model_copy(update=changes)
    return params.model_copy(update={"train": params.train.model_copy(update={"parallel": parallel})})


def split_batch(params: Params, parts: int) -> Params:
    """Return ``params`` with a batch in ``parts`` parts."""
    return params.model_copy(update={"train": params.train.model_copy(update={"accumulate": parts})})
