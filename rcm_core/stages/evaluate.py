"""evaluate: the reported numbers, on the test split alone; ``runs/evaluate/{metrics,quality}.json`` and samples."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rcm_core.config.sections import EvaluateSection, Params
from rcm_core.data.prompts import cycle
from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, exact, mean
from rcm_core.evaluation.judges.base import Judge
from rcm_core.evaluation.judges.build import judge_of
from rcm_core.evaluation.scores import score
from rcm_core.evaluation.teacher_features import IMPORTED, teacher_features
from rcm_core.execution import Executor
from rcm_core.pipelines.teacher_folder import verified_pipeline
from rcm_core.record import dump, hash_inputs, write_record
from rcm_core.samplers.jobs import Job, Teacher, read_sampler, sample_pixels, split_jobs
from rcm_core.storage.files import atomic_folder, write_json
from rcm_core.storage.run_folder import RELATIVE, RunFolder

STAGE = "evaluate"
TIMINGS = 3
REPEATS = 4
INPUTS = [
    RELATIVE.teacher_file,
    RELATIVE.prompts_file,
    RELATIVE.manifest,
    RELATIVE.selection_file,
    RELATIVE.student,
]


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Sample teacher and student from the same noise, score both, and time both."""
    section = params.evaluate
    inputs = hash_inputs(workspace, INPUTS)
    verified_pipeline(workspace)
    facts = RunFolder.of(workspace).teacher()
    parameters = dump(evaluate=section, judge=params.judge)
    with write_record(STAGE, workspace, parameters, inputs, section.seed, section.device):
        jobs = _jobs(section, workspace, executor.state_root / "cache")
        judge = judge_of(
            params.judge, facts["data"], workspace, executor.state_root / "cache", section.device
        )
        features, pixels = _sample_all(jobs, section, judge, executor)
        teacher = teacher_features(workspace, judge, executor, section.batch, section.device)
        real, bootstrap = judge.real_features("test"), Bootstrap(section.bootstrap, section.seed)
        quality: dict[str, Any] = {}
        for name, job in jobs.items():
            main, groups = features[name], features[f"{name}/diversity"]
            shaped = groups.reshape(section.diversity_prompts, section.diversity_samples, *groups.shape[1:])
            rows = score(main, job.prompts, judge, real, teacher, shaped, bootstrap)
            quality[name] = {**rows, "network_calls": exact(job.calls, len(job.ids))}
            shown = (
                f"{k} {rows[k]['value']:.3f}" for k in ("frechet", "frechet_teacher", "accuracy") if k in rows
            )
            print(f"evaluate: {name} {' '.join(shown)}", flush=True)
        quality["protocol"] = _protocol(
            section, facts, judge, jobs["teacher"].prompts, teacher.shape[1], real is not None,
            params.trajectories.source is not None,
        )  # fmt: skip
        timings = _timings(jobs, section, executor)
        _write(RunFolder.of(workspace), quality, timings, pixels, jobs)


def _jobs(section: EvaluateSection, workspace: Path, cache: Path) -> dict[str, Job]:
    teacher = Teacher.read(workspace, cache)
    run = RunFolder.of(workspace)
    sampler = read_sampler(run.selection()["sampler"], run.selection_file, "select")
    split = run.prompts("test")
    distinct = min(len(split), section.samples)
    if section.diversity_prompts > distinct:
        raise InputError(
            f"evaluate.diversity_prompts = {section.diversity_prompts}, but {distinct} test prompts are sampled; lower"
            " it, or write more into prompts.test"
        )
    prompts = cycle(split, section.samples)
    network = str(run.student)
    whole = Job(
        teacher, prompts, tuple(range(section.samples)), section.seed, teacher.steps, device=section.device
    )
    for steps in section.steps:
        sampler.angles(steps)  # raises before anything is sampled
    students = {
        f"student_{s}": replace(whole, steps=s, network=network, sampler=sampler) for s in section.steps
    }
    return {"teacher": whole, "teacher_1": replace(whole, steps=1), **students}


def _diversity_job(job: Job, section: EvaluateSection) -> Job:
    """Return the job of ``diversity_samples`` samples for each of ``diversity_prompts`` prompts, at other ids."""
    chosen = job.prompts[: section.diversity_prompts]
    count = section.diversity_prompts * section.diversity_samples
    prompts = tuple(
        p for p in cycle(list(chosen), section.diversity_prompts) for _ in range(section.diversity_samples)
    )
    return replace(job, prompts=prompts, ids=tuple(range(section.samples, section.samples + count)))


def _sample_all(
    jobs: dict[str, Job], section: EvaluateSection, judge: Judge, executor: Executor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each sampler's judge features and kept pixels, by name; diversity groups are ``<name>/diversity``."""
    wholes = {**jobs, **{f"{n}/diversity": _diversity_job(j, section) for n, j in jobs.items()}}
    kept = section.samples if section.keep_pixels is None else section.keep_pixels
    items = [
        (name, part, sum(i < kept for i in part.ids), judge)
        for name, job in wholes.items()
        for part in split_jobs(job, section.batch)
    ]
    # the longest jobs first, so that no worker starts one at the end
    items.sort(key=lambda item: -item[1].steps)
    features: dict[str, dict[int, Tensor]] = {name: {} for name in wholes}
    pixels: dict[str, dict[int, Tensor]] = {name: {} for name in jobs}
    for name, first, seen, shown in executor.map(_look, items, "samples", device=section.device):
        features[name][first] = seen
        if name in jobs:
            pixels[name][first] = shown
    return _join(features), _join(pixels)


def _join(parts: dict[str, dict[int, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([by_id[first] for first in sorted(by_id)]) for name, by_id in parts.items()}


def _look(item: tuple[str, Job, int, Judge]) -> tuple[str, int, Tensor, Tensor]:
    """Return the sampler's name, the job's first id, the judge's features, and the pixels of the first samples."""
    name, job, kept, judge = item
    torch.set_num_threads(1)
    pixels = sample_pixels(job)
    return name, job.ids[0], judge.look(pixels), pixels[:kept].clone()


def _timings(jobs: dict[str, Job], section: EvaluateSection, executor: Executor) -> dict[str, Any]:
    """Return the seconds per sample of every sampler, measured one after the other in a process that runs alone."""
    smaller = {
        n: replace(j, prompts=j.prompts[: section.timing_samples], ids=j.ids[: section.timing_samples])
        for n, j in jobs.items()
    }
    (times,) = executor.map(_time, [smaller], "timings", device=section.device)
    bootstrap = Bootstrap(section.bootstrap, section.seed)
    return {name: mean(np.array(values), bootstrap, "seconds") for name, values in times.items()}


def _time(jobs: dict[str, Job]) -> dict[str, list[float]]:
    """Time the samplers in alternation, so that a slower machine affects all; repeat the short ones."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        fewest = 1 if job.network is None else job.sampler.steps[0]
        sample_pixels(replace(job, steps=fewest))  # loads the networks
    for _ in range(TIMINGS):
        for name, job in jobs.items():
            for _ in range(1 if job.steps == job.teacher.steps else REPEATS):
                started = time.perf_counter()
                sample_pixels(job)
                times[name].append((time.perf_counter() - started) / len(job.ids))
    return times


def _protocol(
    section: EvaluateSection,
    facts: dict[str, Any],
    judge: Judge,
    prompts: Sequence[str],
    width: int,
    real: bool,
    imported: bool,
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "section": section.model_dump(mode="json", exclude={"device", "batch", "keep_pixels"}),
        "data": facts["data"],
        "judge": judge.digest,
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "sampler": {k: facts[k] for k in ("guidance", "steps", "shift", "solver", "negative_prompt")},
    }
    if facts.get("grid", "scheduler") != "scheduler":
        content["sampler"]["grid"] = facts["grid"]
    if imported:
        content["reference"] = IMPORTED
    reference = IMPORTED if imported else "the teacher's training samples (independent seeds)"
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    space = f"in the {width} features of an independent {judge.name}"
    against = (
        f" Frechet distance, precision and recall {space} against the held-out test scans of {facts['data']};"
        f" frechet_teacher against {reference};"
        if real
        else f" frechet_teacher is the Frechet distance {space} to {reference};"
        f" accuracy is the share of samples of which the judge {judge.finding};"
    )
    description = (
        f"{section.samples} samples for {len(set(prompts))} held-out prompts, the same noise for every sampler;"
        f"{against}"
        f"{_of_categories(judge)}"
        f" diversity is the Vendi score of {section.diversity_samples} samples for each of {section.diversity_prompts}"
        f" prompts; {section.bootstrap} bootstrap resamples, 95 % intervals; seconds per sample at batch"
        f" {section.timing_samples}, one thread."
    )
    finding = {} if judge.pixels else {"finding": judge.finding}
    return {"hash": digest, "description": description, **content, **finding}


def _of_categories(judge: Judge) -> str:
    if not judge.categories:
        return ""
    return f" accuracy_mean is the mean over {len(judge.categories)} categories of prompts;"


def _write(
    run: RunFolder,
    quality: dict[str, Any],
    timings: dict[str, Any],
    pixels: dict[str, Tensor],
    jobs: dict[str, Job],
) -> None:
    with atomic_folder(run.samples) as folder:
        for name, job in jobs.items():
            save_file({"pixels": pixels[name].contiguous()}, folder / f"{name}.safetensors")
            write_json(folder / "prompts.json", list(job.prompts[: len(pixels[name])]))
    write_json(run.quality_file, quality)
    merged = {
        n: row | ({"seconds_per_sample": timings[n]} if n in timings else {}) for n, row in quality.items()
    }
    write_json(run.metrics_file, merged)
