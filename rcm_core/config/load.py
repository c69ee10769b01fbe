"""Loading of params.yaml, with checks of its names against the registries and of its sections against each other."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rcm_core.config.base import Section, check
from rcm_core.config.checks import refuse_contradictions, refuse_oversized
from rcm_core.config.method_requirements import (
    list_provided,
    refuse_import,
    refuse_impossible,
    refuse_lora,
    refuse_offload,
    refuse_split,
)
from rcm_core.config.metrics import refuse_metric, refuse_real
from rcm_core.config.sections import Params, TeacherSection, TrainSection
from rcm_core.config.workers import samples_per_rank, worlds
from rcm_core.errors import InputError
from rcm_core.protocols import MethodRequirements
from rcm_core.registry import available, find, find_benchmark, find_family
from rcm_core.samplers.few_step import Sampler
from rcm_core.samplers.teacher_ode import grid_flaw
from rcm_core.storage.formats import read_yaml


def load_params(path: Path, where: str | None = None) -> Params:
    """Read and check ``path``; InputError names ``where`` (default: ``path``) and the first bad key."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run from the project root, or `dvc exp run`")
    where = where or str(path)
    raw = read_yaml(path, "correct it, or compose it again with `dvc exp run -S ...`")
    if missing := unset(raw):
        raise InputError(
            f"{where}: {', '.join(missing)} must be given, as in `dvc exp run -S {missing[0]}=...`"
        )
    params = check(Params, raw, where)
    _check_choices(params, where)
    _check_together(params, where)
    refuse_contradictions(params, where)
    refuse_oversized(params, where)
    return params


def unset(values: Any, above: str = "") -> list[str]:
    """Return the names of the keys that a preset leaves to the user ("???") and that are still unset."""
    if isinstance(values, dict):
        return [name for key, value in values.items() for name in unset(value, f"{above}.{key}".lstrip("."))]
    return [above] if values == "???" else []


def _check_choices(params: Params, where: str) -> None:
    """Check that the named implementations exist, the method's own keys, and the method's requirements."""
    method = dict(params.method)
    name = method.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{where}: method.name = {name!r}; name one of {', '.join(available('methods'))}")
    module = find("methods", name)
    config = check(module.Config, method, f"{where}: method")
    built = module.build(config, params.train.tangent)
    family = find_family(params.teacher.family)
    refuse_metric(params, where)
    _check_judge(params, where)
    refuse_import(built.requirements, params.trajectories)
    refuse_impossible(built.requirements, family, list_provided(params.trajectories), params.train.lr.given)
    refuse_split(built.requirements, family, params.train.parallel.context)
    refuse_lora(built.requirements, params.train)
    refuse_offload(built.requirements, params.train)
    _check_optimiser(params.train, where)
    _check_teacher(built.requirements, params.teacher, where)
    _check_simulation(config, params.sampler.kind, where)
    _check_samples(built.requirements, params.train, where)


def _check_optimiser(train: TrainSection, where: str) -> None:
    """Check that 8-bit moments have torchao and a fixed number of workers: their blocks cannot be resharded."""
    if train.optimiser != "adamw8bit":
        return
    if find_spec("torchao") is None:
        raise InputError(
            f"{where}: train.optimiser = 'adamw8bit' needs torchao, which is not installed;"
            " pip install 'rcm-distill[eightbit]', or set it to adamw"
        )
    if train.min_workers not in (None, train.workers):
        raise InputError(
            f"{where}: train.optimiser = 'adamw8bit' cannot change the number of workers during training, but"
            f" train.min_workers = {train.min_workers} allows it; set train.min_workers to null or train.optimiser to"
            " adamw"
        )


def _check_judge(params: Params, where: str) -> None:
    """Check that a benchmark without images names a judge network and enables nothing that needs real images."""
    teacher = params.teacher
    if find_benchmark(teacher.data).judge != "open":
        if params.judge is not None:
            raise InputError(
                f"{where}: teacher.data = {teacher.data!r} has a judge of its own; set judge to null"
            )
        return
    without = f"{where}: teacher.data = {teacher.data!r} has no images of its own"
    if params.judge is None:
        raise InputError(
            f"{without} and needs judge.network, a CLIP or SigLIP in transformers layout; name its folder"
        )
    if teacher.mini is not None or teacher.gate is not None:
        raise InputError(
            f"{without} to train a teacher on or to test it with; set teacher.mini and teacher.gate to null"
        )
    if params.trajectories.real and params.trajectories.source is None:
        raise InputError(
            f"{without} for trajectories.real; name some in trajectories.source, or set it to false and choose a method"
            " without a discriminator"
        )
    refuse_real(params, without)


def _check_simulation(config: Section, kind: str, where: str) -> None:
    """Raise InputError if the method simulates the student with another sampler than the one it is sampled with."""
    simulation = getattr(config, "simulation", kind)
    if simulation != kind:
        choice = "simulation" in type(config).model_fields
        simulates = f"{'method.simulation = ' if choice else 'the method simulates by '}{simulation!r}"
        raise InputError(
            f"{where}: {simulates}, but sampler.kind = {kind!r}: the student would be trained with another sampler than"
            f" it is sampled with; set {'both to the same' if choice else f'sampler.kind to {simulation}'}"
        )


def _check_samples(requirements: MethodRequirements, train: TrainSection, where: str) -> None:
    """Check that a rank sees as many samples at once as the method's losses mix (``worlds`` checks the division)."""
    parts = train.workers // train.parallel.context * train.accumulate
    size = train.batch // parts if parts else 0
    if 0 < size < requirements.min_samples_per_rank:
        raise InputError(
            f"{where}: train.batch = {train.batch} in {parts} parts (workers x accumulation steps) is {size} sample"
            f" each, but the method's loss mixes {requirements.min_samples_per_rank}; raise train.batch, or lower"
            " train.workers or train.accumulate"
        )


def _check_teacher(requirements: MethodRequirements, teacher: TeacherSection, where: str) -> None:
    """Check that the teacher has the blocks and the trajectory points that the method needs."""
    if flaw := grid_flaw(teacher.solver, teacher.grid):
        raise InputError(f"{where}: teacher.{flaw}")
    layers = None if teacher.mini is None else teacher.mini.layers
    if layers is not None and max(requirements.heads, default=0) >= layers:
        raise InputError(
            f"{where}: the method's discriminator needs blocks {list(requirements.heads)}, but the teacher has"
            f" {layers} (from 0); change the method's blocks"
        )
    if requirements.min_trajectory_points > teacher.steps:
        raise InputError(
            f"{where}: the method needs {requirements.min_trajectory_points} points of a recorded trajectory, but"
            f" trajectories have teacher.steps = {teacher.steps}; lower method.pairs, or raise teacher.steps"
        )


def _check_together(params: Params, where: str) -> None:
    """Raise InputError for numbers that contradict each other, before anything is computed."""
    train, mini = params.train, params.teacher.mini
    worlds(train, where)
    if mini is not None:
        samples_per_rank(mini.batch, mini.workers, 1, f"{where}: teacher.mini.batch")
    if train.lr_decay and train.lr_decay_from is not None:
        raise InputError(
            f"{where}: train.lr_decay (cosine) and train.lr_decay_from = {train.lr_decay_from} (inverse square root)"
            " both decay the learning rate; set train.lr_decay to false or train.lr_decay_from to null"
        )
    probes, data = train.health.probe_samples, params.trajectories
    if train.health.probe_every is not None and data.source is None and 2 * probes > data.samples:
        raise InputError(
            f"{where}: train.health.probe_samples = {probes} is more than half of trajectories.samples ="
            f" {data.samples}; lower it, raise trajectories.samples, or set train.health.probe_every to null"
        )
    place = where
    try:
        sampler = Sampler.of(params.sampler.kind, params.sampler.times)
        for section, numbers in (("select", params.select.steps), ("evaluate", params.evaluate.steps)):
            place = f"{where}: {section}.steps"
            for steps in numbers:
                sampler.angles(steps)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
