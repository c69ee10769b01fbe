"""Assembly of a training's networks: load them by role, and build the method's view of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rcm_core.config.sections import TrainSection
from rcm_core.diffusion.guidance import Guided
from rcm_core.networks.denoiser import Denoiser
from rcm_core.networks.discriminator import Heads
from rcm_core.protocols import Condition, MethodRequirements, Network, Networks
from rcm_core.registry import find_family
from rcm_core.rng import address
from rcm_core.samplers.jobs import Teacher
from rcm_core.training.lora import Adapted, Shared, load_shared
from rcm_core.training.parallel.sharding import ShardingPlan


class Loaded(NamedTuple):
    """The modules of a training."""

    trained: dict[str, nn.Module]
    """Trained networks and their target networks, by role."""
    teacher: Denoiser
    """The frozen teacher."""
    shared: Shared | None
    """The one network that all roles adapt; None without LoRA."""


def load_networks(
    requirements: MethodRequirements,
    teacher: Teacher,
    section: TrainSection,
    world: int,
    device: torch.device,
    warm: Mapping[str, Tensor] | None = None,
) -> Loaded:
    """Load and shard the networks that ``requirements`` name, and the frozen teacher.

    Networks are initialised from the teacher; the student and its target network from ``warm`` if it is not None.
    New modules get initial weights that the seed addresses.
    """
    family, folder = find_family(teacher.family), Path(teacher.folder)
    spread = ShardingPlan.of(section.parallel, world, device)
    trained: dict[str, nn.Module] = {}
    if section.lora is not None:
        shared = load_shared(folder, family, section.lora, roles_of(requirements), section.seed)
        spread.apply(shared)  # if it shards, this moves one unit after the other
        shared.to(device)
    else:
        shared = None
    with torch.random.fork_rng(devices=[]):
        for role in roles_of(requirements):
            torch.manual_seed(address(section.seed, "extras", role))
            extras = extras_of(requirements, role)
            if shared is not None:
                trained[role] = Adapted(shared, role, folder, extras).to(device).train()
                continue
            weights = warm if role in ("student", "target") else None
            trained[role] = spread.load(role, folder, family, device, extras, weights).train()
        if "heads" in requirements.roles:
            torch.manual_seed(address(section.seed, "heads"))
            trained["heads"] = build_heads(trained["student"], requirements).to(device)
    for role in set(roles_of(requirements)) - requirements.roles:
        trained[role].requires_grad_(False)
    if shared is not None:
        return Loaded(trained, Adapted(shared, None, folder), shared)
    return Loaded(trained, spread.load("teacher", folder, family, device), None)


def build_heads(student: nn.Module, requirements: MethodRequirements) -> Heads:
    """Return the discriminator's heads for features of a network like ``student``."""
    assert isinstance(student, Denoiser)
    return Heads(student.check_blocks(requirements.heads), len(requirements.heads)).train()


def build_networks(
    trained: Mapping[str, nn.Module], teacher: Network, guidance: float, negative: Condition
) -> Networks:
    """Return the networks of a training as its method sees them.

    ``trained``: by role; ``guidance``: the teacher's scale; ``negative``: the condition of the negative prompt, of
    batch size 1.
    """
    frozen = FrozenTeacher(teacher, guidance, negative)
    return Networks.by_role(
        trained, teacher=teacher, guided_teacher=frozen.guide, unconditional_teacher=frozen.unconditional
    )


class FrozenTeacher:
    """The frozen teacher's velocities without gradient, for batches of any size."""

    def __init__(self, network: Network, scale: float, negative: Condition) -> None:
        self.network, self.scale, self.negative = network, scale, negative

    @torch.no_grad()
    def guide(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the guided ``F``, at per-sample scales if ``condition["guidance"]`` is set."""
        scale = condition.get("guidance", self.scale)
        text = {name: condition[name] for name in self.negative}
        return Guided(self.network, scale, self.negative)(x, t, text)

    @torch.no_grad()
    def unconditional(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002
        """Return ``F`` for the negative prompt."""
        expanded = {k: v.expand(len(x), *v.shape[1:]) for k, v in self.negative.items()}
        return self.network(x, t, expanded)


def roles_of(requirements: MethodRequirements) -> list[str]:
    """Return the roles of trained networks and target networks, sorted."""
    return sorted((requirements.roles | {f.target for f in requirements.follows}) - {"heads"})


def extras_of(requirements: MethodRequirements, role: str) -> list[str]:
    """Return the modules that the network of ``role`` has in addition to the teacher's, sorted."""
    return sorted(requirements.student_modules) if role in ("student", "target") else []
