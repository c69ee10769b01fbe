"""Distils a student from a teacher by the chosen method; a loop for ``Executor.train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rcm_core.config import Params, TrainSection, check
from rcm_core.denoiser import Denoiser, load_denoiser
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.guidance import Guided
from rcm_core.protocols import Condition, Method, TrainContext, Velocity
from rcm_core.registry import find
from rcm_core.sampling import Teacher
from rcm_core.storage import write_json
from rcm_core.training.parallel import shard
from rcm_core.training.source import TrajectorySource
from rcm_core.training.trainer import LoopSettings, Trainer
from rcm_core.trajectory_store import Store
from rcm_core.usage import write_usage


def settings_of(section: TrainSection) -> LoopSettings:
    """The loop's settings, as the params say."""
    return LoopSettings(
        iterations=section.iterations,
        batch=section.batch,
        accumulate=section.accumulate,
        lr={"student": section.lr.student, "fake": section.lr.fake},
        lr_warmup=section.lr_warmup,
        lr_decay=section.lr_decay,
        betas=section.betas,
        weight_decay=section.weight_decay,
        ema_lengths=section.ema_lengths,
        candidate_every=section.candidate_every,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        max_nonfinite=section.max_nonfinite,
        seed=section.seed,
    )


def build_method(parameters: dict[str, Any], tangent: str) -> Method:
    """The method that ``parameters`` names, with its own keys checked."""
    options = dict(parameters)
    module = find("methods", str(options.pop("name")))
    method: Method = module.build(check(module.Config, options, "params.yaml: method"), tangent)
    return method


def refuse_impossible(method: Method, provides: frozenset[str]) -> None:
    """InputError if the source lacks what the method needs."""
    missing = sorted(method.needs - provides)
    if missing:
        raise InputError(
            f"the method needs {', '.join(missing)}, but the training data provides {', '.join(sorted(provides))};"
            " choose another method"
        )


class GuidedTeacher:
    """The frozen teacher's guided velocity for batches of any size."""

    def __init__(self, denoiser: Denoiser, scale: float, negative: Condition) -> None:
        self.velocity = Guided(denoiser, scale, negative)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Guided ``F``, without gradient."""
        return self.velocity(x, t, condition)


def loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """``spec``: params, workspace, state, cache."""
    params = check(Params, spec["params"], "params.yaml")
    section, workspace = params.train, Path(spec["workspace"])
    torch.set_num_threads(section.threads)
    device = resolve_device(section.device)
    store = Store(workspace / "runs/trajectories", Path(spec["cache"]))
    source = TrajectorySource(store, section.batch, section.seed, device)
    method = build_method(params.method, section.tangent)
    refuse_impossible(method, source.provides)

    teacher = Teacher.read(workspace)
    family = find("models", teacher.family)
    folder = Path(teacher.folder)
    roles = sorted(method.roles)
    nets = {role: load_denoiser(folder, family).to(device).train() for role in roles}  # type: ignore[arg-type]
    frozen = load_denoiser(folder, family).to(device).requires_grad_(False)  # type: ignore[arg-type]
    for denoiser in (*nets.values(), frozen):
        shard(denoiser, context.world, device)
    velocities: dict[str, Velocity] = {
        **nets,
        "teacher": GuidedTeacher(frozen, teacher.guidance, source.negative),
    }
    trainer = Trainer(
        nets=nets,
        velocities=velocities,
        build_method=lambda tangent: build_method(params.method, tangent),
        source=source,
        settings=settings_of(section),
        context=context,
        device=device,
        candidates=Path(spec["state"]) / "candidates",
        tangent=section.tangent,
        tangent_fallback=section.tangent_fallback,
    )
    trainer.run()
    if context.rank == 0:
        write_json(Path(spec["state"]) / "curves.json", trainer.curves.state())
    write_usage(Path(spec["state"]), context.rank, device)
