"""evaluate: the reported numbers, on the test split alone; ``runs/evaluate/{metrics,quality}.json`` and samples."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rcm_core.config import EvaluateSection, Params
from rcm_core.evaluation.judge import Judge, judge_for
from rcm_core.evaluation.quality import score
from rcm_core.evaluation.reference import teacher_features
from rcm_core.evaluation.statistics import Bootstrap, exact, mean
from rcm_core.prompts import cycle, load_split
from rcm_core.protocols import Executor
from rcm_core.record import dump, hash_inputs, recorded
from rcm_core.sampling import Job, Teacher, read_sampler, sample_pixels, split_jobs
from rcm_core.storage import atomic_folder, read_json, write_json

STAGE = "evaluate"
BATCH = 100
TIMINGS = 3
REPEATS = 4
INPUTS = [
    "runs/teacher/pipeline",
    "runs/teacher/teacher.json",
    "runs/prompts/prompts.parquet",
    "runs/trajectories/manifest.parquet",
    "runs/select/selection.json",
    "runs/select/transformer",
]


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Samples teacher and student from the same noise, scores both, times both."""
    section = params.evaluate
    inputs = hash_inputs(workspace, INPUTS)
    facts = read_json(workspace / "runs/teacher/teacher.json", "teacher")
    with recorded(STAGE, workspace, dump(evaluate=section), inputs, section.seed, section.device):
        jobs = _jobs(section, workspace)
        pixels = _sample_all(jobs, section, executor)
        judge = judge_for(facts["data"])
        teacher = teacher_features(workspace, executor.state_root / "cache", judge)
        real, bootstrap = judge.real_features("test"), Bootstrap(section.bootstrap, section.seed)
        quality: dict[str, Any] = {}
        for name, job in jobs.items():
            main, groups = pixels[name], pixels[f"{name}/diversity"]
            shaped = groups.reshape(section.diversity_prompts, section.diversity_samples, *groups.shape[1:])
            rows = score(main, job.prompts, judge, real, teacher, shaped, bootstrap)
            calls = 2 * job.steps if job.network is None else job.steps
            quality[name] = {**rows, "network_calls": exact(calls, len(job.ids))}
            print(
                f"evaluate: {name} frechet {rows['frechet']['value']:.3f} accuracy {rows['accuracy']['value']:.3f}",
                flush=True,
            )
        quality["protocol"] = _protocol(section, facts, judge, jobs)
        timings = _timings(jobs, section, executor)
        _write(workspace / "runs" / STAGE, quality, timings, pixels, jobs)


def _jobs(section: EvaluateSection, workspace: Path) -> dict[str, Job]:
    teacher = Teacher.read(workspace)
    place = workspace / "runs/select/selection.json"
    sampler = read_sampler(read_json(place, "select").get("sampler"), place, "select")
    prompts = cycle(load_split(workspace, "test"), section.samples)
    network = str(workspace / "runs/select/transformer")
    whole = Job(
        teacher, prompts, tuple(range(section.samples)), section.seed, teacher.steps, device=section.device
    )
    for steps in section.steps:
        sampler.angles(steps)  # refused before anything is sampled
    students = {
        f"student_{s}": replace(whole, steps=s, network=network, sampler=sampler) for s in section.steps
    }
    return {"teacher": whole, "teacher_1": replace(whole, steps=1), **students}


def _diversity_job(job: Job, section: EvaluateSection) -> Job:
    """``diversity_samples`` samples of each of ``diversity_prompts`` prompts, prompt by prompt, at other ids."""
    chosen = job.prompts[: section.diversity_prompts]
    count = section.diversity_prompts * section.diversity_samples
    prompts = tuple(
        p for p in cycle(list(chosen), section.diversity_prompts) for _ in range(section.diversity_samples)
    )
    return replace(job, prompts=prompts, ids=tuple(range(section.samples, section.samples + count)))


def _sample_all(jobs: dict[str, Job], section: EvaluateSection, executor: Executor) -> dict[str, Tensor]:
    """Pixels of every sampler, and of its diversity groups under ``<name>/diversity``."""
    wholes = {**jobs, **{f"{n}/diversity": _diversity_job(j, section) for n, j in jobs.items()}}
    items = [(name, i, part) for name, job in wholes.items() for i, part in enumerate(split_jobs(job, BATCH))]
    items.sort(
        key=lambda item: -item[2].steps
    )  # the long ones first, so that no worker is left with one at the end
    parts: dict[str, dict[int, Tensor]] = {name: {} for name in wholes}
    for name, index, pixels in executor.map(_pixels, items, "samples", device=section.device):
        parts[name][index] = pixels
    return {name: torch.cat([found[i] for i in sorted(found)]) for name, found in parts.items()}


def _pixels(item: tuple[str, int, Job]) -> tuple[str, int, Tensor]:
    torch.set_num_threads(1)
    return item[0], item[1], sample_pixels(item[2])


def _timings(jobs: dict[str, Job], section: EvaluateSection, executor: Executor) -> dict[str, Any]:
    """Seconds per sample of every sampler, measured in turn in one process that runs alone."""
    smaller = {
        n: replace(j, prompts=j.prompts[: section.timing_samples], ids=j.ids[: section.timing_samples])
        for n, j in jobs.items()
    }
    (times,) = executor.map(_time, [smaller], "timings", device=section.device)
    bootstrap = Bootstrap(section.bootstrap, section.seed)
    return {name: mean(np.array(values), bootstrap, "seconds") for name, values in times.items()}


def _time(jobs: dict[str, Job]) -> dict[str, list[float]]:
    """Every sampler in turn, so that a machine that slows down slows all of them; short ones more often."""
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
    section: EvaluateSection, facts: dict[str, Any], judge: Judge, jobs: dict[str, Job]
) -> dict[str, Any]:
    prompts = next(iter(jobs.values())).prompts
    content = {
        "section": section.model_dump(mode="json", exclude={"device"}),
        "data": facts["data"],
        "judge": judge.digest,
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "sampler": {k: facts[k] for k in ("guidance", "steps", "shift", "solver", "negative_prompt")},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    description = (
        f"{section.samples} samples for {len(set(prompts))} held-out prompts, the same noise for every sampler;"
        f" Frechet distance, precision and recall in the 64 features of an independent {judge.name} against the"
        f" held-out test scans of {facts['data']}; frechet_teacher against the teacher's training samples"
        " (independent seeds);"
        f"{_of_categories(judge)}"
        f" diversity is the Vendi score of {section.diversity_samples} samples for each of {section.diversity_prompts}"
        f" prompts; {section.bootstrap} bootstrap resamples, 95 % intervals; seconds per sample at batch"
        f" {section.timing_samples}, one thread."
    )
    return {"hash": digest, "description": description, **content}


def _of_categories(judge: Judge) -> str:
    if not judge.categories:
        return ""
    return f" accuracy_mean is the mean over {len(judge.categories)} categories of prompts;"


def _write(
    out: Path,
    quality: dict[str, Any],
    timings: dict[str, Any],
    pixels: dict[str, Tensor],
    jobs: dict[str, Job],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out / "samples") as folder:
        for name, job in jobs.items():
            save_file({"pixels": pixels[name].contiguous()}, folder / f"{name}.safetensors")
            write_json(folder / "prompts.json", list(job.prompts))
    write_json(out / "quality.json", quality)
    merged = {
        n: row | ({"seconds_per_sample": timings[n]} if n in timings else {}) for n, row in quality.items()
    }
    write_json(out / "metrics.json", merged)
