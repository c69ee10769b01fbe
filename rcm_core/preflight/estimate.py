"""Memory and operations of a training on one GPU: rehearsed twice with few blocks, extrapolated to all blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from rcm_core.config.method_requirements import refuse_split
from rcm_core.config.sections import Params
from rcm_core.config.workers import samples_per_rank
from rcm_core.pipelines.folder import meta_network
from rcm_core.preflight.dry_run import PARTS, Rehearsal, Take
from rcm_core.preflight.dry_runs import Rehearsals, task_of
from rcm_core.preflight.memory_ledger import Peak, Phase
from rcm_core.preflight.network_calls import Kind, kinds
from rcm_core.preflight.teacher_spec import Model
from rcm_core.training.distill import build_method

EDGE = 2
"""Blocks at each end of a network that have other neighbours than those between, and with FSDP2 other weights
gathered beside them.
"""
FEW = 2 * EDGE


class Estimate(NamedTuple):
    """Estimate for one GPU."""

    parameters: int
    """Number of the teacher's parameters."""
    held: dict[str, float]
    """Bytes that stay from step to step, by purpose."""
    phases: dict[str, Peak]
    """Peak memory of every kind of pass."""
    flops: float
    """Floating-point operations of an iteration, on average over the training."""
    velocity: float
    """Floating-point operations of the teacher's velocity for one state, without guidance."""
    rehearsed: tuple[int, ...]
    """Numbers of blocks that were rehearsed."""

    @property
    def top(self) -> str:
        """Name of the pass with the highest peak."""
        return max(self.phases, key=lambda name: self.phases[name].alive)

    @property
    def peak(self) -> float:
        """Peak memory in bytes."""
        return self.phases[self.top].alive


def estimate(
    model: Model, params: Params, fused: bool = True, rehearsals: Rehearsals | None = None
) -> Estimate:
    """Estimate the training that ``params`` describe, with all its ranks.

    ``fused``: with the GPU's attention. ``rehearsals``: what is known already; without them all is rehearsed here.
    Raise InputError for what the training would refuse.
    """
    train = params.train
    method = build_method(params.method, train.tangent)
    refuse_split(method.requirements, model.family, train.parallel.context)
    size = samples_per_rank(
        train.batch, train.workers // train.parallel.context, train.accumulate, "train.batch"
    )
    teacher, own = params.teacher, json.dumps(params.method, sort_keys=True)
    alike = _kinds(own, train.tangent, train.iterations, size, teacher.guidance, teacher.steps)
    depths = _depths(model, method.requirements.heads)
    tasks = [task_of(model.cut(n), params, alike, fused) for n in depths]
    found = (rehearsals or Rehearsals()).results(tasks, " ".join(overrides(params)))
    whole = found[0] if len(found) == 1 else carried_on(found[0], found[1], model.blocks - depths[1])
    return Estimate(
        _size(model)[1],
        {name: float(size) for name, size in whole.held.items()},
        _highest(whole.takes),
        sum(
            kind.share * _flops(whole, take, kind, train.accumulate) for kind, take in zip(alike, whole.takes)
        ),
        whole.forward["teacher"],
        depths,
    )


def _depths(model: Model, heads: Sequence[int]) -> tuple[int, ...]:
    """Two numbers of blocks if the rest can be known from them, else all: small networks, and those whose blocks are
    of several kinds.
    """
    few = max(FEW, max(heads, default=0) + 2)
    less, more, every = (_size(model.cut(n)) for n in (few, few + 1, model.blocks))
    grown = [(b - a) * (model.blocks - few) == c - a for a, b, c in zip(less, more, every)]
    return (few, few + 1) if all(grown) and less[0] + more[0] < every[0] else (model.blocks,)


def _size(model: Model) -> tuple[int, int]:
    """Count blocks and parameters."""
    family = model.family
    return _counts(family.network_class, tuple(family.blocks), json.dumps(dict(model.config), sort_keys=True))


@cache
def _counts(network_class: str, kinds_of_blocks: tuple[str, ...], config: str) -> tuple[int, int]:
    """Cache ``_size``: a search repeats the same networks."""
    network = meta_network(network_class, json.loads(config))
    blocks = [m for m in network.modules() if type(m).__name__ in kinds_of_blocks]
    return len(blocks), sum(p.numel() for p in network.parameters())


@cache
def _kinds(
    method: str, tangent: str, iterations: int, size: int, guidance: float, points: int
) -> tuple[Kind, ...]:
    """Return ``kinds`` of the method whose keys are the JSON ``method``."""
    return tuple(kinds(build_method(json.loads(method), tangent), iterations, size, guidance, points))


def overrides(params: Params) -> list[str]:
    """Return the overrides that lay ``params`` over their GPUs."""
    train = params.train
    names = ("context", "replicas", "checkpointing")
    return [
        f"train.workers={train.workers}",
        f"train.accumulate={train.accumulate}",
        *(f"train.parallel.{name}={getattr(train.parallel, name)}" for name in names),
        f"train.parallel.offload=[{','.join(train.parallel.offload)}]",
    ]


def carried_on(few: Rehearsal, more: Rehearsal, further: int) -> Rehearsal:
    """The rehearsal with ``further`` blocks than ``more``, which has one more than ``few``.

    Every number grows by the same for every block, seen from a pass's begin for its first segments, from its end for
    its last. Between them memory rises or falls steadily, so that the highest is among them.
    """

    def on(a: float, b: float) -> float:
        return b + further * (b - a)

    def phase(a: Phase, b: Phase) -> Phase:
        pairs = list(zip(a.peaks, b.peaks))
        if len(a.peaks) != len(b.peaks):
            pairs = [*pairs[:-EDGE], *zip(a.peaks[EDGE:], b.peaks[EDGE + 1 :])]
        return Phase(a.name, [Peak(*map(on, x, y)) for x, y in pairs], on(a.flops, b.flops))

    takes = [
        Take([phase(*pair) for pair in zip(a.phases, b.phases, strict=True)], a.plain)
        for a, b in zip(few.takes, more.takes, strict=True)
    ]
    held = {name: int(on(few.held[name], more.held[name])) for name in more.held}
    forward = {name: on(few.forward[name], more.forward[name]) for name in more.forward}
    return Rehearsal(held, forward, takes)


def _highest(takes: Sequence[Take]) -> dict[str, Peak]:
    found: dict[str, Peak] = {}
    for phase in (phase for take in takes for phase in take.phases):
        highest = max(phase.peaks, key=lambda peak: peak.alive)
        if phase.name not in found or highest.alive > found[phase.name].alive:
            found[phase.name] = highest
    return found


def _flops(whole: Rehearsal, take: Take, kind: Kind, accumulate: int) -> float:
    """Return an iteration's operations: the rehearsed ones, and the average further calls without gradient."""
    rehearsed = sum(phase.flops for phase in take.phases) / min(PARTS, accumulate)
    more = sum((n - take.plain.get(role, 0)) * whole.forward[role] for role, n in kind.plain.items())
    return accumulate * (rehearsed + more)
