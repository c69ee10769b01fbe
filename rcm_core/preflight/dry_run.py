"""The training's own code on tensors without data: networks, sharding, methods, optimisers, as on rank 0 of the world.

Nothing is modelled: FSDP2, Ulysses, activation checkpointing and AdamW run as they do in a training and take and free
what they take there; collectives come back at once.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from rcm_core.config.sections import Params
from rcm_core.networks.denoiser import Denoiser
from rcm_core.preflight.fake_world import FirstRank, fused_attention, world_of
from rcm_core.preflight.held_memory import bytes_of, held_by
from rcm_core.preflight.memory_ledger import Ledger, Phase, record_into
from rcm_core.preflight.network_calls import Calls, Kind, kind_of
from rcm_core.preflight.teacher_spec import Model
from rcm_core.protocols import (
    Batch,
    Examples,
    Method,
    MethodRequirements,
    Networks,
    TeacherTrajectory,
    Update,
)
from rcm_core.storage.files import write_json
from rcm_core.training.distill import build_method, settings_of
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.lora import Adapted, Shared
from rcm_core.training.networks import build_heads, build_networks, extras_of, roles_of
from rcm_core.training.parallel.collectives import reshard
from rcm_core.training.parallel.sharding import ShardingPlan
from rcm_core.training.train_step import Stepper

PARTS = 2
"""Accumulation parts to run per iteration: the second adds to the gradients of the first, later ones are equal."""
EIGHT_BIT = (1 + 4 / 256) / 4
"""Share of a float32 moment's bytes: a byte per value, a scale per 256. The optimiser is rehearsed as AdamW."""
CPU = torch.device("cpu")


class Take(NamedTuple):
    """One iteration of a kind."""

    phases: list[Phase]
    plain: dict[str, int]
    """Samples through each network without gradient in one part."""


class Rehearsal(NamedTuple):
    """Memory and operations of rank 0."""

    held: dict[str, int]
    """Bytes that stay from step to step, by purpose."""
    forward: dict[str, float]
    """Floating-point operations of one sample through each network, without gradient."""
    takes: list[Take]
    """One entry for each kind of iteration."""


@dataclass(frozen=True)
class Watched:
    """A Method whose phases are entered into a ledger."""

    inner: Method
    ledger: Ledger

    @property
    def requirements(self) -> MethodRequirements:
        return self.inner.requirements

    def student_update(self, step: int) -> bool:
        self.ledger.open("optimiser")
        return self.inner.student_update(step)

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        for update in self.inner.updates(networks, batch, step, rng):
            self.ledger.open(f"{' and '.join(update.roles)}: backward")
            yield update
            self.ledger.open("between passes")


class Blank:
    """Batches of the right size."""

    def __init__(self, model: Model, points: int) -> None:
        self.model, self.points = model, points

    def batch(self, step: int, part: int, size: int) -> Batch:  # noqa: ARG002
        x0, condition = torch.zeros(size, *self.model.shape), self.model.conditions(size)
        batch = Batch(condition, self.model.conditions(1), x0, Examples(x0, condition))
        if not self.points:
            return batch
        route, t = torch.zeros(size, self.points, *self.model.shape), torch.zeros(size, self.points)
        return batch._replace(route=TeacherTrajectory(route, t, route))


def rehearse(model: Model, params: Params, alike: Sequence[Kind], fused: bool) -> Rehearsal:
    """Iterations of the kinds ``alike`` with ``model``; ``fused``: attention as the GPU kernels do it.

    InputError for what a training would refuse.
    """
    section, world = params.train, params.train.workers
    offload = section.parallel.offload
    nets: dict[str, nn.Module] = {}
    stowed = 0

    def gradients() -> int:
        return bytes_of(p.grad for role in nets if role not in offload for p in nets[role].parameters())

    def away() -> int:
        """Return the bytes that the rehearsal has but the device would not."""
        grown = bytes_of(p.grad for role in offload if role in nets for p in nets[role].parameters())
        return stowed + grown

    ledger = Ledger(gradients, away)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))  # the training will show them
        stack.enter_context(world_of(world))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        write_json(folder / "transformer/config.json", dict(model.config))
        made = _networks(model, params, folder, ShardingPlan.of(section.parallel, world, CPU))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(record_into(ledger))
        if fused:
            stack.enter_context(fused_attention(ledger.work))
        for net in made.values():
            net.to_empty(device=CPU)
        frozen = _roles(made, params, folder, nets)
        stepper = _assemble(model, params, ledger, nets, frozen)
        calls = _watch({**nets, "teacher": frozen}, ledger)
        _first_steps(stepper)
        forward = _forward({**nets, "teacher": frozen}, model, stepper.size, ledger)
        held = held_by(stepper, made["teacher"], offload)
        if section.optimiser == "adamw8bit":
            held["optimiser"] = round(held["optimiser"] * EIGHT_BIT)
        stowed = sum(held_by(stepper, made["teacher"]).values()) - sum(held.values())
        return Rehearsal(held, forward, [_take(stepper, kind, ledger, calls) for kind in alike])


def _networks(model: Model, params: Params, folder: Path, spread: ShardingPlan) -> dict[str, Denoiser]:
    """What ``training.distill`` makes, by role, and the frozen teacher: sharded, on the meta device. ``folder`` has the
    network's configuration. With low-rank matrices there is the teacher alone.
    """
    requirements, lora = build_method(params.method, params.train.tangent).requirements, params.train.lora
    roles, family = roles_of(requirements), model.family

    def build(kind: type[Denoiser], extras: Sequence[str] = ()) -> Denoiser:
        return kind(family.empty_network(folder), family, family.parameterisation(folder), extras)

    if lora is not None:
        shared = build(Shared)
        assert isinstance(shared, Shared)
        shared.adapt(lora, roles, params.train.seed)
        nets: dict[str, Denoiser] = {"teacher": shared}
    else:
        nets = {role: build(Denoiser, extras_of(requirements, role)).train() for role in roles}
        nets["teacher"] = build(Denoiser).requires_grad_(False)
        for role in set(roles) - requirements.roles:
            nets[role].requires_grad_(False)
    for net in nets.values():
        spread.apply(net)
    return nets


def _roles(made: dict[str, Denoiser], params: Params, folder: Path, nets: dict[str, nn.Module]) -> Denoiser:
    """Put the trained and following networks into ``nets``; return the frozen teacher."""
    requirements, shared = build_method(params.method, params.train.tangent).requirements, made["teacher"]
    frozen, roles = shared, roles_of(requirements)
    if isinstance(shared, Shared):
        nets |= {r: Adapted(shared, r, folder, extras_of(requirements, r)).train() for r in roles}
        frozen = Adapted(shared, None, folder)
    else:
        nets |= {role: made[role] for role in roles}
    if "heads" in requirements.roles:
        nets["heads"] = build_heads(nets["student"], requirements)
    return frozen


def _assemble(
    model: Model, params: Params, ledger: Ledger, nets: dict[str, nn.Module], frozen: Denoiser
) -> Stepper:
    """Do the work of ``training.distill.assemble``."""
    requirements = build_method(params.method, params.train.tangent).requirements
    return Stepper(
        modules=nets,
        networks=build_networks(nets, frozen, params.teacher.guidance, model.conditions(1)),
        build_method=lambda tangent: Watched(build_method(params.method, tangent), ledger),
        source=Blank(model, params.teacher.steps if "routes" in requirements.needs else 0),
        settings=_settings(params),
        context=FirstRank(params.train.workers),
        device=CPU,
        tangent=params.train.tangent,
    )


def _settings(params: Params) -> LoopSettings:
    """The loop's, with few parts, and no limit that a value which nobody knows could pass."""
    settings = settings_of(params.train)
    parts = min(PARTS, settings.accumulate)
    batch = settings.batch * parts // settings.accumulate
    return replace(settings, accumulate=parts, batch=batch, max_nonfinite=1.0, health=None, eight_bit=False)


def _watch(networks: Mapping[str, nn.Module], ledger: Ledger) -> Calls:
    """Every pass of a network becomes a phase, every block a segment, forwards and backwards."""
    calls: Calls = Counter()

    def entering(role: str) -> Any:
        def before(module: nn.Module, inputs: Any) -> None:  # noqa: ARG001
            kind = kind_of(inputs[0])
            calls[role, kind] += len(inputs[0])
            ledger.open(f"{role}: {WORDS[kind]}")

        return before

    def leaving_block(module: nn.Module, inputs: Any, out: Any) -> None:  # noqa: ARG001
        ledger.cut()
        last = [x for x in tree_leaves(out) if isinstance(x, Tensor)][-1]
        if torch.is_grad_enabled() and last.requires_grad:
            last.register_hook(lambda _: ledger.cut())  # type: ignore[no-untyped-call]

    watched: set[nn.Module] = set()  # roles may share blocks
    for role, net in networks.items():
        if isinstance(net, Denoiser):
            net.register_forward_pre_hook(entering(role))
            net.register_forward_hook(lambda *_: ledger.open("between passes"))
            for block in set(net.blocks()) - watched:
                block.register_forward_hook(leaving_block)
                watched.add(block)
    return calls


WORDS = {"plain": "without gradient", "gradient": "forward", "tangent": "tangent pass"}


def _first_steps(stepper: Stepper) -> None:
    """Run one optimiser step: AdamW allocates its moments there, and DTensor propagates shapes of new operations."""
    roles = sorted(stepper.optimisers)
    for role in roles:
        for p in stepper.modules[role].parameters():
            p.grad = torch.zeros_like(p)
    stepper.updater.move(0, roles, True)


@torch.no_grad()
def _forward(networks: Mapping[str, nn.Module], model: Model, size: int, ledger: Ledger) -> dict[str, float]:
    """Return the operations of one sample through every network; sharding allocates its buffers on the way."""
    found = {}
    for role, net in networks.items():
        if isinstance(net, Denoiser):
            first = len(ledger.phases)
            net(torch.zeros(size, *model.shape), torch.ones(size), model.conditions(size))
            found[role] = sum(phase.flops for phase in ledger.phases[first:]) / size
            reshard(net)
    return found


def _take(stepper: Stepper, kind: Kind, ledger: Ledger, calls: Calls) -> Take:
    calls.clear()
    first = len(ledger.phases)
    stepper.train_step(kind.step)
    ledger.open("after")
    plain = {
        role: n // stepper.settings.accumulate for (role, passed), n in calls.items() if passed == "plain"
    }
    return Take(ledger.phases[first:-1], plain)
