"""Distils a student from a teacher by the chosen method; a loop for ``Executor.train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rcm_core.config.base import check
from rcm_core.config.method_requirements import refuse_impossible, refuse_lora, refuse_offload, refuse_split
from rcm_core.config.sections import Params, TrainSection
from rcm_core.config.workers import parts_per_rank
from rcm_core.data.loaders import TrajectorySource
from rcm_core.data.trajectory_store import Store
from rcm_core.device import resolve_device
from rcm_core.execution import TrainContext
from rcm_core.protocols import Method
from rcm_core.registry import find, find_family
from rcm_core.samplers.jobs import Teacher
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.memory_usage import write_usage
from rcm_core.training.networks import build_networks, load_networks
from rcm_core.training.probe import Probe
from rcm_core.training.trainer import Trainer
from rcm_core.training.warm_start import initial_weights


def settings_of(section: TrainSection, world: int | None = None) -> LoopSettings:
    """Return the loop's settings; on fewer ranks than ``train.workers`` each rank computes more parts of a batch."""
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
    """Build the method that ``parameters`` names, after a check of its own keys."""
    options = dict(parameters)
    module = find("methods", str(options.pop("name")))
    method: Method = module.build(check(module.Config, options, "params.yaml: method"), tangent)
    return method


def build_probe(
    section: TrainSection, source: TrajectorySource, world: int, guidance: float | None
) -> Probe | None:
    """Build the probe of the samples that ``source`` holds out; None if ``train.health.probe_every`` is null."""
    every = section.health.probe_every
    if every is None:
        return None
    return Probe(source.held_back(), section.seed, every, source.device, world, guidance)


def loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """Distil the student that ``spec`` describes.

    Keys of ``spec``: params, workspace, state, cache; optionally warm_start (folders "student" and "teacher").
    """
    trainer = assemble(context, spec)
    trainer.run()
    finish(trainer, spec)


def assemble(context: TrainContext, spec: dict[str, Any]) -> Trainer:
    """Build the trainer of the run, at step 0 or at the checkpoint from which ``context`` resumes."""
    params = check(Params, spec["params"], "params.yaml")
    section, workspace = params.train, Path(spec["workspace"])
    torch.set_num_threads(section.threads)
    device = resolve_device(section.device)
    store = Store(RunFolder.of(workspace).trajectories, Path(spec["cache"]))
    method = build_method(params.method, section.tangent)
    held = section.health.probe_samples if section.health.probe_every else 0
    source = TrajectorySource(store, section.batch, section.seed, device, method.requirements.needs, held)

    teacher = Teacher.read(workspace)
    family = find_family(teacher.family)
    refuse_impossible(method.requirements, family, source.provides, section.lr.given)
    refuse_split(method.requirements, family, section.parallel.context)
    refuse_lora(method.requirements, section)
    refuse_offload(method.requirements, section)
    warm = None
    if spec.get("warm_start") is not None and context.rank == 0:  # rank 0 sends the other ranks their shards
        student, old = (Path(spec["warm_start"][name]) for name in ("student", "teacher"))
        warm = initial_weights(family, student, old, Path(teacher.folder))
    loaded = load_networks(method.requirements, teacher, section, context.world, device, warm)
    return Trainer(
        modules=loaded.trained,
        networks=build_networks(loaded.trained, loaded.teacher, teacher.guidance, source.negative),
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
        probe=build_probe(section, source, context.world, method.requirements.guidance),
    )


def finish(trainer: Trainer, spec: dict[str, Any]) -> None:
    """Write what the stage reads after training: curves, health and peak memory."""
    if trainer.context.rank == 0:
        write_json(Path(spec["state"]) / "curves.json", trainer.curves.state())
        facts = {"step": trainer.step, "iterations": trainer.settings.iterations, "tangent": trainer.tangent}
        write_json(Path(spec["state"]) / "health.json", facts | trainer.health.facts())
    write_usage(Path(spec["state"]), trainer.context.rank, trainer.device)
