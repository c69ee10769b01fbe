"""trajectories: samples for training, the teacher's or others' (docs/data.md);
``runs/trajectories/{manifest.parquet,store.json,shards/}``.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_core import imported
from rcm_core.config.sections import Params, TrajectoriesSection
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.pipelines.teacher_folder import verified_pipeline
from rcm_core.prompts import load_split
from rcm_core.protocols import Executor
from rcm_core.real import RealExamples
from rcm_core.record import clear_state, dump, fingerprint, hash_inputs, live_state, recorded
from rcm_core.rng import address
from rcm_core.samplers.jobs import (
    Job,
    Teacher,
    codec_of,
    conditions,
    guided,
    negative_condition,
    noise,
    sample,
    split_jobs,
)
from rcm_core.samplers.teacher_ode import sample_route
from rcm_core.storage.files import atomic, atomic_folder, require_space, require_target
from rcm_core.storage.s3 import unbroken
from rcm_core.storage.schemas import read_teacher
from rcm_core.trajectory_store import (
    MANIFEST,
    Place,
    finished,
    shard_name,
    write_finite,
    write_manifest,
    write_store,
)

STAGE = "trajectories"
MAX_NONFINITE = 0.01


@dataclass(frozen=True)
class ShardJob:
    """One shard: which samples, and where it goes."""

    place: Place
    name: str
    job: Job
    routes: bool
    real: RealExamples | None = None


@dataclass(frozen=True)
class ImportJob:
    """One shard of samples that are there already."""

    place: Place
    name: str
    source: imported.Source
    """With the shard's samples alone."""
    ids: tuple[int, ...]
    teacher: Teacher
    device: str


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Generates or imports the missing shards, then the manifest; a shard that is whole is never made twice."""
    section, teacher = params.trajectories, Teacher.read(workspace, executor.state_root / "cache")
    parameters = dump(trajectories=section)
    inputs = hash_inputs(workspace, ["runs/teacher/teacher.json", "runs/prompts/prompts.parquet"])
    verified_pipeline(workspace)
    source = None
    if section.source is not None:
        source = imported.find(section.source, teacher, workspace, executor, section.seed)
        inputs[imported.KEY] = source.hash
    key = fingerprint(STAGE, params, parameters, inputs)
    with recorded(STAGE, workspace, parameters, inputs, section.seed, section.device):
        state = live_state(executor.state_root, STAGE, key)
        place = _place(section, workspace, state, key)
        place.open()
        samples = section.samples if source is None else len(source.samples)
        if not place.remote:
            require_space(Path(place.url), _size(section, teacher, samples))
        jobs = (
            _jobs(section, teacher, workspace, place)
            if source is None
            else _imports(section, teacher, source, place)
        )
        shards = []
        for facts in executor.map(make_shard, jobs, "trajectories", device=section.device):
            shards.append(facts)
            print(f"trajectories: {len(shards)}/{len(jobs)} shards", flush=True)
        _refuse_nonfinite(shards, samples, source)
        _write(workspace / "runs" / STAGE, section, teacher, place, shards)
    clear_state(state)


def _place(section: TrajectoriesSection, workspace: Path, state: Path, key: str) -> Place:
    """Where shards are written: the live state, or a folder of this run's own below the target."""
    if section.target is None:
        return Place(str(state / "shards"))
    require_target(section.target, workspace, "trajectories.target")
    target = section.target.rstrip("/")
    return Place(f"{target if '://' in target else workspace / target}/{key}", section.endpoint)


def _jobs(
    section: TrajectoriesSection, teacher: Teacher, workspace: Path, place: Place
) -> Sequence[ShardJob | ImportJob]:
    """What the teacher generates."""
    prompts = load_split(workspace, "train")
    data = read_teacher(workspace)["data"]
    real = RealExamples(data, tuple(prompts), section.seed) if section.real else None
    jobs = []
    for name, ids in _shards(section, section.samples):
        # prompts rotate with the epoch over them, so that every prompt meets every phrase of noise addresses
        asked = tuple(prompts[address(section.seed, "prompt", i) % len(prompts)] for i in ids)
        job = Job(
            teacher, asked, ids, section.seed, teacher.steps, device=section.device, batch=section.batch
        )
        jobs.append(ShardJob(place, name, job, section.routes, real))
    return jobs


def _imports(
    section: TrajectoriesSection, teacher: Teacher, source: imported.Source, place: Place
) -> Sequence[ShardJob | ImportJob]:
    """What is imported."""
    jobs = []
    for name, ids in _shards(section, len(source.samples)):
        part = replace(source, samples=source.samples[ids[0] : ids[-1] + 1])
        jobs.append(ImportJob(place, name, part, ids, teacher, section.device))
    return jobs


def _shards(section: TrajectoriesSection, samples: int) -> list[tuple[str, tuple[int, ...]]]:
    """Name and sample ids of every shard."""
    starts = range(0, samples, section.shard_size)
    return [
        (shard_name(index), tuple(range(first, min(first + section.shard_size, samples))))
        for index, first in enumerate(starts)
    ]


def make_shard(item: ShardJob | ImportJob) -> dict[str, Any]:
    """Facts of the shard: the finished one's if its bytes are what they should be, else of a new one."""
    known = finished(item.place, item.name)
    if known is not None:
        return known
    if isinstance(item, ImportJob):
        facts: dict[str, Any] = {
            "samples": item.ids,
            "prompts": [sample.prompt for sample in item.source.samples],
            "files": [sample.name for sample in item.source.samples],
        }
        return write_finite(
            item.place, item.name, imported.load(item.source, item.teacher, item.device), facts
        )
    job = item.job
    make = _route if item.routes else _ends
    parts = [make(part) for part in split_jobs(job, job.batch)]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    condition = conditions(job.teacher, job.prompts, resolve_device(job.device))
    tensors |= {f"condition.{name}": value.cpu().contiguous() for name, value in condition.items()}
    if item.real is not None:
        tensors |= _real(item.real, job)
    return write_finite(item.place, item.name, tensors, {"samples": job.ids, "prompts": job.prompts})


def _ends(job: Job) -> dict[str, Tensor]:
    return {"x0": sample(job)}


@torch.no_grad()
def _route(job: Job) -> dict[str, Tensor]:
    """Every state, angle and guided velocity of the teacher's route, [B, K, ...], and its end."""
    device = resolve_device(job.device)
    z = noise(job.seed, job.ids, 1, job.teacher.shape)[0].to(device)
    condition = conditions(job.teacher, job.prompts, device)
    velocity = guided(job.teacher, job.device)
    teacher = job.teacher
    route = sample_route(
        velocity, z, condition, steps=job.steps, shift=teacher.shift, solver=teacher.solver, grid=teacher.grid
    )
    angles = route.t.float().expand(len(job.ids), -1)
    found = {
        "x0": route.x0,
        "route.x": route.x.transpose(0, 1),
        "route.t": angles,
        "route.v": route.F.transpose(0, 1),
    }
    return {name: value.cpu() for name, value in found.items()}


def _real(examples: RealExamples, job: Job) -> dict[str, Tensor]:
    """A real image's latents and its own prompt's embedding for every sample."""
    pixels, prompts = examples.of(job.ids)
    device = resolve_device(job.device)
    condition = conditions(job.teacher, prompts, device)
    latents = codec_of(job.teacher.folder, job.teacher.family, device.type).encode(pixels)
    return {"real.x0": latents, **{f"real.condition.{k}": v.cpu().contiguous() for k, v in condition.items()}}


def _size(section: TrajectoriesSection, teacher: Teacher, samples: int) -> int:
    """Bytes that the shards need, with the copy that becomes the output if there is no target."""
    apart = section.real and section.source is None  # an import's samples are the real ones themselves
    states = 1 + (2 * teacher.steps + 1 if section.routes else 0) + apart
    condition = negative_condition(teacher, torch.device("cpu"))
    text = sum(value.numel() * value.element_size() for value in condition.values())
    copies = 2 if section.target is None else 1
    return copies * samples * (4 * math.prod(teacher.shape) * states + (1 + apart) * text)


def _refuse_nonfinite(shards: list[dict[str, Any]], samples: int, source: imported.Source | None) -> None:
    lost = sum(int(s["nonfinite"]) for s in shards)
    if lost:
        print(f"trajectories: {lost} of {samples} samples are not finite and were left out", flush=True)
    if lost <= MAX_NONFINITE * samples:
        return
    if source is not None:
        raise InputError(
            f"{lost} of {samples} samples of {source.place.url} are not finite, more than {MAX_NONFINITE:.0%};"
            " check the latents in it, or the VAE that encodes it"
        )
    raise InputError(
        f"{lost} of {samples} teacher samples are not finite, more than {MAX_NONFINITE:.0%};"
        " check the teacher, its guidance and its shift before distilling it"
    )


def _write(
    out: Path, section: TrajectoriesSection, teacher: Teacher, place: Place, shards: list[dict[str, Any]]
) -> None:
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    negative = negative_condition(teacher, torch.device("cpu"))
    with atomic(out / "negative.safetensors") as temporary:
        save_file({f"condition.{k}": v.contiguous() for k, v in negative.items()}, temporary)
    if section.target is None:
        with atomic_folder(out / "shards") as folder:
            for facts in shards:
                shutil.copyfile(Path(place.url) / facts["shard"], folder / facts["shard"])
    real = section.real and section.source is not None
    write_store(out, "shards" if section.target is None else place.url, place.endpoint, real)
    write_manifest(out / MANIFEST, shards)
    if section.target is not None:
        system, root = place.open()
        with unbroken(f"s3://{root}"):
            system.put_file(str(out / MANIFEST), f"{root}/{MANIFEST}")
