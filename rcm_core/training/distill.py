"""Distils a student from a teacher by the chosen method; a loop for ``Executor.train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_core.config.base import check
from rcm_core.config.method_requirements import refuse_impossible, refuse_lora, refuse_offload, refuse_split
from rcm_core.config.sections import Params, TrainSection
from rcm_core.config.workers import parts_per_rank
from rcm_core.data.loaders import TrajectorySource
from rcm_core.data.trajectory_store import Store
from rcm_core.device import resolve_device
from rcm_core.diffusion.guidance import Guided
from rcm_core.execution import TrainContext
from rcm_core.networks.denoiser import Denoiser
from rcm_core.networks.discriminator import Heads
from rcm_core.protocols import Condition, Demands, Method
from rcm_core.registry import find, find_family
from rcm_core.rng import address
from rcm_core.samplers.jobs import Teacher
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.lora import Adapted, Shared, load_shared
from rcm_core.training.memory_usage import write_usage
from rcm_core.training.parallel.sharding import Spread
from rcm_core.training.probe import Probe
from rcm_core.training.trainer import Trainer
from rcm_core.training.warm_start import initial_weights


def settings_of(section: TrainSection, world: int | None = None) -> LoopSettings:
    """The loop's settings, as the params say: on fewer ranks than ``train.workers`` each computes more parts."""
    return LoopSettings(
        iterations=section.iterations,
        batch=section.batch,
        accumulate=parts_per_rank(section, section.workers if world is None else world),
        lr=section.lr.given,
        clip=section.clip.given,
        lr_warmup=section.lr_warmup.given,
        lr_decay=section.lr_decay,
        lr_decay_from=section.lr_decay_from,
        eight_bit=section.optimiser == "adamw8bit",
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        ema_lengths=section.ema_lengths,
        candidate_every=section.candidate_every,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        max_nonfinite=section.max_nonfinite,
        seed=section.seed,
        context=section.parallel.context,
        health=section.health,
    )


def build_method(parameters: dict[str, Any], tangent: str) -> Method:
    """The method that ``parameters`` names, with its own keys checked."""
    options = dict(parameters)
    module = find("methods", str(options.pop("name")))
    method: Method = module.build(check(module.Config, options, "params.yaml: method"), tangent)
    return method


class FrozenTeacher:
    """The frozen teacher's velocities without gradient, for batches of any size."""

    def __init__(self, denoiser: Denoiser, scale: float, negative: Condition) -> None:
        self.denoiser, self.scale, self.negative = denoiser, scale, negative

    @torch.no_grad()
    def guided(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Guided ``F``, at each sample's own scale if the condition has one."""
        scale = condition.get("guidance", self.scale)
        text = {name: condition[name] for name in self.negative}
        return Guided(self.denoiser, scale, self.negative)(x, t, text)

    @torch.no_grad()
    def null(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002
        """``F`` for the negative prompt."""
        expanded = {k: v.expand(len(x), *v.shape[1:]) for k, v in self.negative.items()}
        return self.denoiser(x, t, expanded)  # type: ignore[no-any-return]


def roles_of(demands: Demands) -> list[str]:
    """The networks that are trained or follow one, sorted."""
    return sorted((demands.roles | {f.follower for f in demands.follows}) - {"heads"})


def extras_of(demands: Demands, role: str) -> list[str]:
    """What the network of ``role`` has besides the teacher's, sorted."""
    return sorted(demands.extras) if role in ("student", "target") else []


def build_nets(
    method: Method,
    teacher: Teacher,
    seed: int,
    device: torch.device,
    spread: Spread,
    warm: Mapping[str, Tensor] | None = None,
    shared: Shared | None = None,
) -> dict[str, nn.Module]:
    """What is trained or follows; new modules begin at weights that the seed addresses.

    The networks begin as the teacher; the student and its follower as ``warm``, if that is given. With ``shared`` they
    are no networks of their own but its roles.
    """
    demands, family, folder = method.demands, find_family(teacher.family), Path(teacher.folder)
    copies = roles_of(demands)
    nets: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for role in copies:
            torch.manual_seed(address(seed, "extras", role))
            extras = extras_of(demands, role)
            if shared is not None:
                nets[role] = Adapted(shared, role, folder, extras).to(device).train()
                continue
            weights = warm if role in ("student", "target") else None
            nets[role] = spread.load(role, folder, family, device, extras, weights).train()
        if "heads" in demands.roles:
            torch.manual_seed(address(seed, "heads"))
            student = nets["student"]
            assert isinstance(student, Denoiser)
            nets["heads"] = Heads(student.check_blocks(demands.heads), len(demands.heads)).to(device).train()
    for role in set(copies) - demands.roles:
        nets[role].requires_grad_(False)
    return nets


def build_probe(
    section: TrainSection, source: TrajectorySource, world: int, guidance: float | None
) -> Probe | None:
    """The probe of what ``source`` holds back, if the params ask for one."""
    every = section.health.probe_every
    if every is None:
        return None
    return Probe(source.held_back(), section.seed, every, source.device, world, guidance)


def loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """``spec``: params, workspace, state, cache; warm_start, the folders of an earlier student and its teacher."""
    trainer = assemble(context, spec)
    trainer.run()
    finish(trainer, spec)


def assemble(context: TrainContext, spec: dict[str, Any]) -> Trainer:
    """All that the run needs, at its beginning or where ``context`` resumes."""
    params = check(Params, spec["params"], "params.yaml")
    section, workspace = params.train, Path(spec["workspace"])
    torch.set_num_threads(section.threads)
    device = resolve_device(section.device)
    store = Store(RunFolder.of(workspace).trajectories, Path(spec["cache"]))
    method = build_method(params.method, section.tangent)
    held = section.health.probe_samples if section.health.probe_every else 0
    source = TrajectorySource(store, section.batch, section.seed, device, method.demands.needs, held)

    teacher = Teacher.read(workspace)
    family = find_family(teacher.family)
    refuse_impossible(method.demands, family, source.provides, section.lr.given)
    refuse_split(method.demands, family, section.parallel.context)
    refuse_lora(method.demands, section)
    refuse_offload(method.demands, section)
    warm = None
    if spec.get("warm_start") is not None and context.rank == 0:  # who sends the others their parts
        student, old = (Path(spec["warm_start"][name]) for name in ("student", "teacher"))
        warm = initial_weights(family, student, old, Path(teacher.folder))
    spread = Spread.of(section.parallel, context.world, device)
    shared, folder = None, Path(teacher.folder)
    if section.lora is not None:
        shared = load_shared(folder, family, section.lora, roles_of(method.demands), section.seed)
        spread.apply(shared)  # which moves one unit after the other, if it is sharded
        shared.to(device)
    nets = build_nets(method, teacher, section.seed, device, spread, warm, shared)
    if shared is not None:
        frozen: Denoiser = Adapted(shared, None, folder)
    else:
        frozen = spread.load("teacher", folder, family, device)
    guide = FrozenTeacher(frozen, teacher.guidance, source.negative)
    return Trainer(
        nets=nets,
        views={**nets, "teacher": guide.guided, "null": guide.null, "unguided": frozen},
        build_method=lambda tangent: build_method(params.method, tangent),
        source=source,
        settings=settings_of(section, context.world),
        context=context,
        device=device,
        candidates=Path(spec["state"]) / "candidates",
        candidate_precision=section.candidate_precision or teacher.precision,
        keep_candidates=section.keep_candidates,
        tangent=section.tangent,
        tangent_fallback=section.tangent_fallback,
        probe=build_probe(section, source, context.world, method.demands.guidance),
    )


def finish(trainer: Trainer, spec: dict[str, Any]) -> None:
    """Leaves what the stage reads when training has ended: curves, health and peak memory."""
    if trainer.context.rank == 0:
        write_json(Path(spec["state"]) / "curves.json", trainer.curves.state())
        facts = {"step": trainer.step, "iterations": trainer.settings.iterations, "tangent": trainer.tangent}
        write_json(Path(spec["state"]) / "health.json", facts | trainer.health.facts())
    write_usage(Path(spec["state"]), trainer.context.rank, trainer.device)
