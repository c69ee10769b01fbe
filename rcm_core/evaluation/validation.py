"""Validation score of one sampler, by which candidates and the sampler's times are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from rcm_core.config.sections import Params, SelectSection
from rcm_core.data.prompts import cycle
from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, Estimate
from rcm_core.evaluation.judges.base import Judge
from rcm_core.evaluation.judges.build import judge_of
from rcm_core.evaluation.metric import metric_of
from rcm_core.evaluation.scores import score_one
from rcm_core.evaluation.teacher_features import teacher_features
from rcm_core.execution import Executor
from rcm_core.samplers.jobs import Job, Teacher, sample_pixels, split_jobs
from rcm_core.storage.run_folder import RunFolder

Key = TypeVar("Key")


class Scale(NamedTuple):
    """The metric, judge and reference features of a validation score."""

    judge: Judge
    metric: str
    references: dict[str, np.ndarray]
    """Features [M, D] of real images ("real") and of the teacher's samples ("teacher"), if ``metric`` needs them."""
    bootstrap: Bootstrap


def scale_of(params: Params, workspace: Path, executor: Executor) -> Scale:
    """Return the metric of ``params.select`` with its reference; InputError if the benchmark has none."""
    section = params.select
    data = RunFolder.of(workspace).teacher()["data"]
    judge = judge_of(params.judge, data, workspace, executor.state_root / "cache", section.device)
    needs = metric_of(section.metric).needs
    references: dict[str, np.ndarray] = {}
    if "real" in needs:
        real = judge.real_features("validation")
        if real is None:
            raise InputError(
                f"select.metric is {section.metric}, but {data} has no real images; set it to frechet_teacher"
            )
        references["real"] = real
    if "teacher" in needs:
        references["teacher"] = teacher_features(workspace, judge, executor, section.batch, section.device)
    return Scale(judge, section.metric, references, Bootstrap(section.bootstrap, section.seed))


def validation_job(section: SelectSection, workspace: Path, cache: Path | None = None) -> Job:
    """Return a job of ``section.samples`` validation samples; the caller sets network, steps and sampler.

    Prompts, ids and seed are the same in all jobs; ``cache`` is an optional folder for prompt embeddings.
    """
    prompts = cycle(RunFolder.of(workspace).prompts("validation"), section.samples)
    ids = tuple(range(section.samples))
    return Job(
        Teacher.read(workspace, cache),
        prompts,
        ids,
        section.seed,
        1,
        device=section.device,
        batch=section.batch,
    )


def score_job(item: tuple[Key, Job, Scale]) -> tuple[Key, Estimate]:
    """Return the key and the score of a job; executors map this function."""
    key, job, (judge, metric, references, bootstrap) = item
    torch.set_num_threads(1)
    looked = torch.cat([judge.look(sample_pixels(part)) for part in split_jobs(job, job.batch)])
    return key, score_one(metric, looked, job.prompts, judge, references, bootstrap)
