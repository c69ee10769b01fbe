"""A training's own train step on random weights and batches, built from its parameters, on one device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from infra.executors.local import LocalContext
from rcm_core.config.sections import Params
from rcm_core.networks.denoiser import Denoiser
from rcm_core.pipelines.folder import meta_network
from rcm_core.preflight.teacher_spec import Model
from rcm_core.protocols import Batch, Condition, Examples
from rcm_core.rng import generator
from rcm_core.samplers.jobs import Teacher
from rcm_core.training.checkpointing.checkpoint import write_network
from rcm_core.training.distill import build_method, settings_of
from rcm_core.training.lora import Shared
from rcm_core.training.networks import build_networks, load_networks
from rcm_core.training.train_step import Stepper

SPREAD = 0.02
"""Standard deviation of random weights."""


class Drawn:
    """Source of random batches with the sizes of ``model``."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        self.negative = self._conditions(1, generator("negative"))

    def batch(self, step: int, part: int, size: int) -> Batch:
        rng = generator("drawn", step, part)
        x0 = torch.randn(size, *self.model.shape, generator=rng).to(self.device)
        condition = self._conditions(size, rng)
        return Batch(condition, self.negative, x0, Examples(x0, condition))

    def _conditions(self, size: int, rng: torch.Generator) -> Condition:
        zeros = self.model.conditions(size)
        drawn = {name: torch.randn(z.shape, generator=rng) for name, z in zeros.items()}
        if "mask" in drawn:  # token features
            drawn["mask"] = torch.ones_like(drawn["mask"])
        return {name: value.to(self.device) for name, value in drawn.items()}


class Assembled(NamedTuple):
    """A train step and its networks by role."""

    stepper: Stepper
    frozen: Denoiser
    shared: Shared | None

    @property
    def networks(self) -> dict[str, Denoiser]:
        """Return all networks that are called, including the frozen teacher."""
        own = {role: net for role, net in self.stepper.modules.items() if isinstance(net, Denoiser)}
        return {**own, "teacher": self.frozen}

    def count_bytes(self) -> int:
        """Return the bytes of all tensors that persist between steps, counting each storage once."""
        modules = [*self.stepper.modules.values(), self.shared or self.frozen]
        states = [o.state[p] for o in self.stepper.optimisers.values() for p in o.state]
        every = [x for m in modules for x in (*m.parameters(), *m.buffers())]
        every += tree_leaves([states, self.stepper.ema.averages])
        storages = {s.data_ptr(): s.nbytes() for s in _storages(every)}
        return sum(storages.values())


def _storages(values: list[Any]) -> Iterator[Any]:
    for x in values:
        if isinstance(x, Tensor):
            yield getattr(x, "_local_tensor", x).untyped_storage()


def write_random(folder: Path, model: Model, device: torch.device) -> None:
    """Write the network of ``model`` with random weights, drawn on ``device``, to ``folder/transformer``."""
    network = meta_network(model.family.network_class, model.config).to_empty(device=device)
    rng = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            value.normal_(0, SPREAD, generator=rng)
    write_network(folder / "transformer", network, {k: v.cpu() for k, v in network.state_dict().items()})


def assemble(params: Params, model: Model, folder: Path, device: torch.device) -> Assembled:
    """Assemble as ``training.distill.assemble`` does, from the weights in ``folder``."""
    section, source = params.train, Drawn(model, device)
    method = build_method(params.method, section.tangent)
    named, guidance = params.teacher.family, params.teacher.guidance
    teacher = Teacher(str(folder), named, model.shape, guidance, 50, 3.0, "euler", "")
    loaded = load_networks(method.requirements, teacher, section, 1, device)
    stepper = Stepper(
        modules=loaded.trained,
        networks=build_networks(loaded.trained, loaded.teacher, guidance, source.negative),
        build_method=lambda tangent: build_method(params.method, tangent),
        source=source,
        settings=settings_of(section),
        context=LocalContext(folder),
        device=device,
    )
    return Assembled(stepper, loaded.teacher, loaded.shared)
