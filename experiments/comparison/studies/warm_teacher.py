"""The updated teacher of the warm start: its training, its distance to the old one, and the old student's score."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from experiments.comparison.workspaces import digest, executor_in
from rcm_core.config.sections import Params
from rcm_core.data.prompts import read_prompts
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.selection import combine
from rcm_core.evaluation.validation import scale_of, score_job, validation_job
from rcm_core.execution import TrainJob
from rcm_core.pipelines.teacher_folder import pipeline_of
from rcm_core.samplers.few_step import Sampler
from rcm_core.storage.files import atomic_folder, write_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.training import pretrain

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def refine(params: Params, steps: int, seed: int, old: Path, folder: Path) -> None:
    """Train the teacher of the workspace ``old`` further on other batches and noise, into ``folder/pipeline``, once."""
    facts = RunFolder.of(old).teacher()
    key = {"key": digest([facts["hash"], steps, seed])}
    done, state, pipeline = folder / "done.json", folder / "state", pipeline_of(old)
    if done.is_file() and json.loads(done.read_text()) == key:
        return
    mini = params.teacher.mini
    assert mini is not None  # the plan has only embedded teachers
    mini = mini.model_copy(update={"steps": steps})
    section = params.teacher.model_copy(update={"seed": seed, "mini": mini})
    spec = {
        "teacher": section.model_dump(mode="json"),
        "prompts": read_prompts(old / params.prompts.train),
        "pipeline": str(pipeline),
        "candidates": str(state / "candidates"),
        "state": str(state),
        "threads": mini.threads,
    }
    executor_in(folder).train(
        TrainJob(pretrain.loop, spec, state=state, workers=1, threads=mini.threads, device=section.device)
    )
    trained = state / "candidates" / f"step_{mini.steps:06d}-ema_{mini.ema_length:g}" / "transformer"
    with atomic_folder(folder / "pipeline") as made:
        shutil.copytree(pipeline, made, dirs_exist_ok=True)
        shutil.copytree(trained, made / "transformer", dirs_exist_ok=True)
    shutil.rmtree(state)
    write_json(done, key)


def change(old: Path, new: Path) -> float:
    """Return the distance of the weights of the pipelines ``old`` and ``new``, relative to their norm."""
    before, after = (load_file(p / WEIGHTS) for p in (old, new))
    moved = sum(float((after[name] - value).double().square().sum()) for name, value in before.items())
    return math.sqrt(moved / sum(float(value.double().square().sum()) for value in before.values()))


def score_of(student: Path, params: Params, workspace: Path) -> Estimate:
    """Return the published ``student``'s score on the validation split of ``workspace``, computed as in selection."""
    section, sampler = params.select, Sampler.of(params.sampler.kind, params.sampler.times)
    executor = executor_in(workspace)
    scale = scale_of(params, workspace, executor)
    whole = replace(validation_job(section, workspace), network=str(student / "transformer"), sampler=sampler)
    items = [(steps, replace(whole, steps=steps), scale) for steps in section.steps]
    found = dict(executor.map(score_job, items, "student", device=section.device))
    return combine([found[steps] for steps in section.steps])
