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


Tell = Callable[[str], None]


def choose(model: Model, params: Params, gpu: Gpu, tell: Tell) -> Choice | None:
    """The cheapest way of these ``params`` that fits ``gpu``, with as many workers; None if there is none.

    Cheapest is, in this order: the fewest GPUs that share a state (context 1, 2, 4, 8), because each attention waits
    for its exchange; the least that backward makes again (none, matmuls, blocks); the fewest parts of a batch
    (accumulate); the most replicas, whose groups gather their weights from few neighbours. Context must divide heads,
    tokens and workers. ``tell`` hears what is tried.
    """
    for context in _contexts(params.train.workers):
        rank = params.train.batch // (params.train.workers // context)
        if params.train.batch % (params.train.workers // context) or not rank:
            continue
        lightest = tried(model, _changed(params, context, "blocks", rank), tell)
        if lightest is None or not lightest.fits(gpu):
            continue
        for checkpointing in ("none", "matmuls", "blocks"):
            found = _fewest_parts(model, _changed(params, context, checkpointing, 1), gpu, tell)
            if found is not None:
                return _replicated(model, found, gpu, tell)
    return None


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


def lightest(model: Model, params: Params, tell: Tell) -> Choice | None:
    """The way that needs least of each GPU: all of a node share a state, as far as the network lets them."""
    for context in reversed(list(_contexts(params.train.workers))):
        ranks = params.train.workers // context
        if params.train.batch % ranks == 0:
            found = tried(model, _changed(params, context, "blocks", params.train.batch // ranks), tell)
            if found is not None:
                return found
    return None


def _fewest_parts(model: Model, params: Params, gpu: Gpu, tell: Tell) -> Choice | None:
    """With the smallest ``accumulate`` that fits; what a GPU holds falls in a line with the samples of a part."""
    rank = params.train.batch // (params.train.workers // params.train.parallel.context)
    parts = [n for n in range(1, rank + 1) if rank % n == 0]
    ends = [tried(model, accumulated(params, n), tell) for n in sorted({parts[0], parts[-1]})]
    first, last = ends[0], ends[-1]
    if first is None or last is None or not last.fits(gpu):
        return None
    if first.fits(gpu):
        return first
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
