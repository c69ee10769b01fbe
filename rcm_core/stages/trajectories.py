"""trajectories: samples for training, the teacher's or others' (docs/data.md);
``runs/trajectories/{manifest.parquet,store.json,shards/}``.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rcm_core.config.sections import Params, TrajectoriesSection
from rcm_core.data import importer
from rcm_core.data.real_images import RealExamples
from rcm_core.data.shards import ImportJob, ShardJob, generate_shard, import_shard
from rcm_core.data.trajectory_store import (
    MANIFEST,
    Place,
    shard_name,
    write_manifest,
    write_store,
)
from rcm_core.errors import InputError
from rcm_core.execution import Executor
from rcm_core.pipelines.teacher_folder import verified_pipeline
from rcm_core.record import clear_state, dump, fingerprint, hash_inputs, live_state, write_record
from rcm_core.rng import address
from rcm_core.samplers.jobs import (
    Job,
    Teacher,
    negative_condition,
)
from rcm_core.storage.files import atomic, atomic_folder, require_space, require_target
from rcm_core.storage.run_folder import RELATIVE, RunFolder
from rcm_core.storage.s3 import unbroken

STAGE = "trajectories"
MAX_NONFINITE = 0.01


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Generates or imports the missing shards, then the manifest; a shard that is whole is never made twice."""
    section, teacher = params.trajectories, Teacher.read(workspace, executor.state_root / "cache")
    parameters = dump(trajectories=section)
    inputs = hash_inputs(workspace, [RELATIVE.teacher_file, RELATIVE.prompts_file])
    verified_pipeline(workspace)
    source = None
    if section.source is not None:
        source = importer.find(section.source, teacher, workspace, executor, section.seed)
        inputs[importer.KEY] = source.hash
    key = fingerprint(STAGE, params, parameters, inputs)
    with write_record(STAGE, workspace, parameters, inputs, section.seed, section.device):
        state = live_state(executor.state_root, STAGE, key)
        place = _place(section, workspace, state, key)
        place.open()
        samples = section.samples if source is None else len(source.samples)
        if not place.remote:
            require_space(Path(place.url), _size(section, teacher, samples))
        if source is None:
            jobs: list[Any] = _jobs(section, teacher, workspace, place)
            made = executor.map(generate_shard, jobs, "trajectories", device=section.device)
        else:
            jobs = _imports(section, teacher, source, place)
            made = executor.map(import_shard, jobs, "trajectories", device=section.device)
        shards = []
        for facts in made:
            shards.append(facts)
            print(f"trajectories: {len(shards)}/{len(jobs)} shards", flush=True)
        _refuse_nonfinite(shards, samples, source)
        _write(RunFolder.of(workspace).trajectories, section, teacher, place, shards)
    clear_state(state)


def _place(section: TrajectoriesSection, workspace: Path, state: Path, key: str) -> Place:
    """Where shards are written: the live state, or a folder of this run's own below the target."""
    if section.target is None:
        return Place(str(state / "shards"))
    require_target(section.target, workspace, "trajectories.target")
    target = section.target.rstrip("/")
    return Place(f"{target if '://' in target else workspace / target}/{key}", section.endpoint)


def _jobs(section: TrajectoriesSection, teacher: Teacher, workspace: Path, place: Place) -> list[ShardJob]:
    """What the teacher generates."""
    run_folder = RunFolder.of(workspace)
    prompts, data = run_folder.prompts("train"), run_folder.teacher()["data"]
    real = RealExamples(data, tuple(prompts), section.seed) if section.real else None
    jobs = []
    for name, ids in _shards(section, section.samples):
        # prompts rotate with the epoch over them, so that every prompt meets every phrase of noise addresses
        asked = tuple(prompts[address(section.seed, "prompt", i) % len(prompts)] for i in ids)
        job = Job(
            teacher, asked, ids, section.seed, teacher.steps, device=section.device, batch=section.batch
        )
        jobs.append(ShardJob(place, name, job, section.keep_trajectories, real))
    return jobs


def _imports(
    section: TrajectoriesSection, teacher: Teacher, source: importer.Source, place: Place
) -> list[ImportJob]:
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


def _size(section: TrajectoriesSection, teacher: Teacher, samples: int) -> int:
    """Bytes that the shards need, with the copy that becomes the output if there is no target."""
    apart = section.real and section.source is None  # an import's samples are the real ones themselves
    states = 1 + (2 * teacher.steps + 1 if section.keep_trajectories else 0) + apart
    condition = negative_condition(teacher, torch.device("cpu"))
    text = sum(value.numel() * value.element_size() for value in condition.values())
    copies = 2 if section.target is None else 1
    return copies * samples * (4 * math.prod(teacher.shape) * states + (1 + apart) * text)


def _refuse_nonfinite(shards: list[dict[str, Any]], samples: int, source: importer.Source | None) -> None:
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
    with atomic_folder(out / "shards") as folder:  # empty if they lie at the target: DVC expects every output
        for facts in shards if section.target is None else ():
            shutil.copyfile(Path(place.url) / facts["shard"], folder / facts["shard"])
    real = section.real and section.source is not None
    write_store(out, "shards" if section.target is None else place.url, place.endpoint, real)
    write_manifest(out / MANIFEST, shards)
    if section.target is not None:
        system, root = place.open()
        with unbroken(f"s3://{root}"):
            system.put_file(str(out / MANIFEST), f"{root}/{MANIFEST}")
