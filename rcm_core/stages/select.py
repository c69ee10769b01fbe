"""select: which candidate, on the validation split alone; ``runs/select/{selection.json,transformer}``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from rcm_core.config import Params
from rcm_core.errors import InputError
from rcm_core.evaluation.judge import Judge, judge_for
from rcm_core.evaluation.quality import score_one
from rcm_core.evaluation.reference import teacher_features
from rcm_core.evaluation.select import Candidate, choose
from rcm_core.evaluation.statistics import Bootstrap, Estimate
from rcm_core.prompts import cycle, load_split
from rcm_core.protocols import Executor
from rcm_core.record import dump, hash_inputs, recorded
from rcm_core.sampling import Job, Teacher, sample_pixels
from rcm_core.storage import atomic_folder, read_json, write_json

STAGE = "select"


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Scores every checkpoint x EMA length at every step count and copies the best one's network."""
    section = params.select
    inputs = hash_inputs(
        workspace, ["runs/teacher/teacher.json", "runs/prompts/prompts.parquet", "runs/train/candidates"]
    )
    with recorded(STAGE, workspace, dump(select=section), inputs, section.seed, section.device):
        root = workspace / "runs/train/candidates"
        found = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        candidates = {parse(name): root / name for name in found}
        if not candidates:
            raise InputError(
                f"{root} holds no candidate; run `dvc repro train`, with train.candidate_every <= train.iterations"
            )
        data, teacher = (
            read_json(workspace / "runs/teacher/teacher.json", "teacher")["data"],
            Teacher.read(workspace),
        )
        prompts = cycle(load_split(workspace, "validation"), section.samples)
        items = [
            (candidate, steps, Job(
                teacher, prompts, tuple(range(section.samples)), section.seed, steps,
                str(folder / "transformer"), section.angles, section.device,
            ))
            for candidate, folder in candidates.items()
            for steps in section.steps
        ]  # fmt: skip
        judge = judge_for(data)
        reference = (
            judge.real_features("validation")
            if section.metric == "frechet"
            else teacher_features(workspace, executor.state_root / "cache", judge)
        )
        jobs = [
            (c, s, job, judge, section.metric, reference, Bootstrap(section.bootstrap, section.seed))
            for c, s, job in items
        ]
        scores: dict[Candidate, dict[str, Estimate]] = {candidate: {} for candidate in candidates}
        for candidate, steps, estimate in executor.map(_score, jobs, "candidates", device=section.device):
            scores[candidate][str(steps)] = estimate
        ordered = {c: {str(s): v[str(s)] for s in section.steps} for c, v in scores.items()}
        selection = choose(ordered, section.metric, section.steps) | {"angles": list(section.angles)}
        out = workspace / "runs" / STAGE
        out.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out / "transformer") as folder:
            shutil.copytree(root / selection["choice"]["name"] / "transformer", folder, dirs_exist_ok=True)
        write_json(out / "selection.json", selection)
    print(f"select: {selection['reason']}", flush=True)


def parse(name: str) -> Candidate:
    """``step_000300-ema_0.05`` as a Candidate; InputError for another name."""
    try:
        step, ema = name.removeprefix("step_").split("-ema_")
        return Candidate(name, int(step), float(ema))
    except ValueError as error:
        raise InputError(
            f"runs/train/candidates/{name} is not a candidate's name (step_<n>-ema_<length>); remove it"
        ) from error


def _score(
    item: tuple[Candidate, int, Job, Judge, str, np.ndarray, Bootstrap],
) -> tuple[Candidate, int, Estimate]:
    candidate, steps, job, judge, metric, reference, bootstrap = item
    torch.set_num_threads(1)
    pixels = sample_pixels(job)
    return candidate, steps, score_one(metric, pixels, job.prompts, judge, reference, bootstrap)
