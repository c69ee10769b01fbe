"""What distribution matching matches, and what it does not: ``python -m experiments.comparison.studies.mixture``.

A fake score learns the student's predictions from all angles that training visits, and the student is trained until
that mixture has the teacher's distribution. Here trained students predict as in training. The predictions are evaluated
together and by ranges of their angle, always equally many, because fewer samples have a larger Frechet distance.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.comparison.measurements import machine
from experiments.comparison.plan import PLANS, UPDATES, Plan
from experiments.comparison.runner import Runner, Start, alone, in_subprocess
from experiments.comparison.workspaces import FORMAT, Home, executor_in
from infra.interrupt import unwind_on_signals
from rcm_core.config.sections import Params
from rcm_core.device import resolve_device
from rcm_core.diffusion.trigflow import NOISE_ANGLE, predict_x0
from rcm_core.evaluation.scores import score_one
from rcm_core.evaluation.validation import scale_of, validation_job
from rcm_core.objectives.backward_simulation import SimulationSection, simulation_times
from rcm_core.objectives.base import unit_noise
from rcm_core.objectives.distribution_matching import generate
from rcm_core.protocols import Batch, Networks
from rcm_core.rng import generator
from rcm_core.samplers.jobs import Job, conditions, decode, network_of
from rcm_core.samplers.rollout import random_schedule, record_trajectory
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.training.distill import build_method

RUNS = ("dmd2", "dmd2-5", "dmd2-single", "rcm", "rcm-0.1", "cdm")
METRICS = ("frechet_teacher", "accuracy")
BATCH = 50


class Part(NamedTuple):
    """Predictions from angles in [low, high)."""

    words: str
    low: float
    high: float


PARTS = (
    Part("all together", 0.0, 2.0),
    Part("from pure noise", NOISE_ANGLE, 2.0),
    Part("from angles of 1.2 and above", 1.2, NOISE_ANGLE),
    Part("from 0.8 to 1.2", 0.8, 1.2),
    Part("below 0.8", 0.0, 0.8),
)


@torch.no_grad()
def predict(params: Params, job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the student's clean predictions [B, ...] as in training, and their angles [B], by batches of ``job``."""
    config, device = build_method(params.method, params.train.tangent).config, resolve_device(job.device)
    student = network_of(job.teacher.folder, job.teacher.family, job.network, job.device)
    for index, start in enumerate(range(0, len(job.ids), BATCH)):
        prompts = job.prompts[start : start + BATCH]
        condition = conditions(job.teacher, prompts, device)
        rng = generator(job.seed, "mixture", index)
        like = torch.zeros((len(prompts), *job.teacher.shape), device=device)
        if isinstance(config, SimulationSection):
            angles = simulation_times(config, index, len(prompts), rng)
            batch = Batch(condition, {}, like)
            x0 = generate(Networks(student), batch, angles, rng, config.simulation).x
            yield x0.float().cpu(), angles[-1].cpu()
            continue
        noise = unit_noise(rng, like)
        length = int(torch.randint(1, config.rollout_steps + 1, (), generator=rng))
        route = random_schedule(length, config.rollout_low, config.rollout_high, config.rollout_shift, rng)
        walk = record_trajectory(student, noise, route.to(device), condition)
        rows = torch.arange(len(prompts), device=device)
        anchor = torch.randint(length, (len(prompts),), generator=rng).to(device)
        t = walk.t[anchor]
        yield predict_x0(walk.x[anchor, rows], t, walk.F[anchor, rows]).float().cpu(), t.cpu()


def measure(params: Params, workspace: Path, each: int, most: int) -> list[dict[str, Any]]:
    """Return a row for each part that has at least ``each`` of ``most`` predictions of the selected student."""
    section = params.select.model_copy(update={"samples": most, "metric": METRICS[0]})
    scale = scale_of(params.model_copy(update={"select": section}), workspace, executor_in(workspace))
    job = replace(validation_job(section, workspace), network=str(RunFolder.of(workspace).student))
    pairs = list(predict(params, job))
    x, t = torch.cat([x for x, _ in pairs]), torch.cat([t for _, t in pairs])
    rows = []
    for part in PARTS:
        found = ((t >= part.low) & (t < part.high)).nonzero().flatten()[:each]
        if len(found) < each:
            continue
        pixels, prompts = decode(job, x[found]), [job.prompts[i] for i in found.tolist()]
        scores = {
            metric: score_one(metric, pixels, prompts, scale.judge, scale.references, scale.bootstrap)
            for metric in METRICS
        }
        rows.append({"part": part.words, **scores})
    return rows


def over_training(workspace: Path) -> list[dict[str, Any]]:
    """Return selection's scores of the candidates with the longest EMA, in order of training."""
    candidates = RunFolder.of(workspace).selection()["candidates"]
    longest = max(c["ema"] for c in candidates)
    return [{"step": c["step"], "scores": c["scores"]} for c in candidates if c["ema"] == longest]


def study_results(
    plan: Plan, home: Home, names: tuple[str, ...], start: Start, each: int = 1000, most: int = 12000
) -> None:
    """Write ``mixture.json``; missing students of seed 0 at equal updates are trained first."""
    runner = Runner(plan, home, start)
    runner.prepare()
    found = {}
    for name in names:
        params, workspace = runner.make_run(plan.variant(name), 0, UPDATES)
        parts = measure(params, workspace, each, most)
        found[name] = {"parts": parts, "candidates": over_training(workspace)}
        print(f"{plan.teacher} {name}: {parts[0]['frechet_teacher']['value']:.2f} together", flush=True)
    facts = {"format": FORMAT, "teacher": plan.teacher, "samples": each, "runs": found, "machine": machine()}
    write_json(home.results.parent / "mixture.json", facts)


def main() -> int:
    """Run the study. Exit status 0, or 2 for bad input."""
    return alone(lambda home: study_results(PLANS["mini"], home, RUNS, in_subprocess))


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
