"""How a training is best laid over its GPUs: the cheapest way that fits, tried by rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rcm_core.config import Params
from rcm_core.errors import InputError
from rcm_core.plan.estimate import Estimate, estimate
from rcm_core.plan.gpus import Gpu
from rcm_core.plan.model import Model

SHARE = 0.92
"""Of a GPU's memory: the rest is for CUDA, NCCL and the allocator's holes."""
NODE = 8
"""GPUs whose exchange is fast: no state is shared by more."""


class Choice(NamedTuple):
    """A way that was tried."""

    params: Params
    estimate: Estimate

    def fits(self, gpu: Gpu) -> bool:
        return self.estimate.peak <= SHARE * gpu.memory

    @property
    def overrides(self) -> list[str]:
        """What sets it."""
        train = self.params.train
        parallel = train.parallel
        return [
            f"train.workers={train.workers}",
            f"train.accumulate={train.accumulate}",
            *(
                f"train.parallel.{name}={getattr(parallel, name)}"
                for name in ("context", "replicas", "checkpointing")
            ),
        ]


class Search(NamedTuple):
    """What came of it."""

    best: Choice | None
    """The cheapest that fits."""
    least: Choice | None
    """If none does, what needs least."""


Tell = Callable[[str], None]


def choose(model: Model, params: Params, gpu: Gpu, tell: Tell) -> Search:
    """The cheapest way of these ``params`` that fits ``gpu``, with as many workers.

    Cheapest is, in this order: the fewest GPUs that share a state (context 1, 2, 4, 8), because each attention waits
    for its exchange; the least that backward makes again (none, matmuls, blocks); the fewest parts of a batch
    (accumulate); the most replicas, whose groups gather their weights from few neighbours. Context must divide heads,
    tokens and workers. ``tell`` hears what is tried.
    """
    least: Choice | None = None
    for context in _contexts(params.train.workers):
        size, rest = divmod(params.train.batch, params.train.workers // context)
        light = None if rest or not size else tried(model, _changed(params, context, "blocks", size), tell)
        if light is None:
            continue
        if least is None or light.estimate.peak < least.estimate.peak:
            least = light
        for checkpointing in ("none", "matmuls", "blocks") if light.fits(gpu) else ():
            found = _fewest_parts(model, _changed(params, context, checkpointing, 1), gpu, tell)
            if found is not None:
                return Search(_replicated(model, found, gpu, tell), None)
    return Search(None, least)


def tried(model: Model, params: Params, tell: Tell) -> Choice | None:
    """None if a training would refuse it."""
    choice = params.train
    tell(
        f"context {choice.parallel.context}, checkpointing {choice.parallel.checkpointing}, accumulate"
        f" {choice.accumulate}, replicas {choice.parallel.replicas}"
    )
    try:
        return Choice(params, estimate(model, params))
    except InputError:
        return None


def workers_needed(choice: Choice, gpu: Gpu) -> int | None:
    """So many GPUs that the lightest way fits with shards as small as theirs; None if shards do not help."""
    found, workers = choice.estimate, choice.params.train.workers
    shards = sum(found.held.values()) + found.phases[found.top].gradients
    rest = SHARE * gpu.memory - (found.peak - shards)
    if rest <= 0:
        return None
    needed = workers
    while shards * workers / needed > rest:
        needed *= 2
    return needed


def _fewest_parts(model: Model, params: Params, gpu: Gpu, tell: Tell) -> Choice | None:
    """With the smallest ``accumulate`` that fits; what a GPU holds falls in a line with the samples of a part."""
    rank = params.train.batch // (params.train.workers // params.train.parallel.context)
    parts = [n for n in range(1, rank + 1) if rank % n == 0]
    first = tried(model, params, tell)
    if first is None or rank == 1 or first.fits(gpu):
        return first if first is not None and first.fits(gpu) else None
    last = tried(model, accumulated(params, rank), tell)
    if last is None or not last.fits(gpu):
        return None
    slope = (first.estimate.peak - last.estimate.peak) / (rank - 1)
    for n in parts[1:-1]:
        if last.estimate.peak + slope * (rank // n - 1) <= SHARE * gpu.memory:
            found = tried(model, accumulated(params, n), tell)
            if found is not None and found.fits(gpu):
                return found
    return last


def _replicated(model: Model, choice: Choice, gpu: Gpu, tell: Tell) -> Choice:
    """With the most replicas that fit."""
    workers = choice.params.train.workers
    found = choice.estimate
    shards = sum(found.held.values()) + found.phases[found.top].gradients
    for replicas in (n for n in range(workers, 1, -1) if workers % n == 0):
        if found.peak + (replicas - 1) * shards <= SHARE * gpu.memory:
            params = _parallel(choice.params, replicas=replicas)
            more = tried(model, params, tell)
            if more is not None and more.fits(gpu):
                return more
    return choice


def _contexts(workers: int) -> Iterator[int]:
    return (n for n in (1, 2, 4, 8) if n <= NODE and workers % n == 0)


def _changed(params: Params, context: int, checkpointing: str, accumulate: int) -> Params:
    return accumulated(
        _parallel(params, context=context, checkpointing=checkpointing, replicas=1), accumulate
    )


def _parallel(params: Params, **changes: object) -> Params:
    parallel = params.train.parallel.model_copy(update=changes)
    return params.model_copy(update={"train": params.train.model_copy(update={"parallel": parallel})})


def accumulated(params: Params, parts: int) -> Params:
    """``params`` with a batch in so many parts."""
    return params.model_copy(update={"train": params.train.model_copy(update={"accumulate": parts})})
