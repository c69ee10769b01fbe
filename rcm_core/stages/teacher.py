"""teacher: resolves a teacher reference, or trains the embedded one; ``runs/teacher/{pipeline,teacher.json}``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from rcm_core import mini
from rcm_core.config import Params, TeacherSection
from rcm_core.demands import refuse_frames
from rcm_core.errors import InputError
from rcm_core.evaluation.judge import Judge, judge_for
from rcm_core.layout import read_part
from rcm_core.pipeline_files import require_index
from rcm_core.prompts import cycle, read_prompts
from rcm_core.protocols import Executor, Family
from rcm_core.record import clear_state, dump, fingerprint, hash_inputs, live_state, recorded
from rcm_core.registry import find
from rcm_core.sampling import Job, Teacher, sample_pixels, split_jobs
from rcm_core.storage import atomic_folder, fetch_folder, sha256_folder, write_json
from rcm_core.training import pretrain
from rcm_core.usage import peak_memory

STAGE = "teacher"
GATE_BATCH = 100


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Leaves a diffusers pipeline folder and what is known of it; InputError if it misses its gate."""
    section = params.teacher
    parameters = dump(teacher=section)
    train, validation = (
        read_prompts(workspace / name) for name in (params.prompts.train, params.prompts.validation)
    )
    inputs = hash_inputs(workspace, [params.prompts.train, params.prompts.validation])
    out = workspace / "runs" / STAGE
    with recorded(STAGE, workspace, parameters, inputs, section.seed, section.device) as extra:
        state = live_state(executor.state_root, STAGE, fingerprint(STAGE, params, parameters, inputs))
        pipeline = state / "pipeline"
        if section.source == "mini":
            _train_mini(section, train, state, executor)
        else:
            # a copy, so that what was distilled is what is kept; without a leading slash it lies in the workspace
            place = section.source if "://" in section.source else str(workspace / section.source)
            otherwise = (
                f"teacher.source {section.source!r} is neither 'mini' nor a folder that exists;"
                " give a folder or s3:// prefix in diffusers layout"
            )
            if "://" not in place and Path(place).is_dir():
                require_index(Path(place), f"teacher.source {section.source!r}")
            fetch_folder(place, section.endpoint, pipeline, otherwise)
        family: Family = find("models", section.family)  # type: ignore[assignment]
        family.check_folder(pipeline)
        refuse_frames(family, read_part(pipeline, "transformer/config.json"), section.source)
        facts = _facts(section, pipeline)
        facts["gate"] = _gate(section, facts, state, validation, executor)
        out.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out / "pipeline") as folder:
            shutil.copytree(pipeline, folder, dirs_exist_ok=True)
        write_json(out / "teacher.json", facts)
        extra["peak_memory_bytes"] = peak_memory(state)
    clear_state(state)


def _train_mini(section: TeacherSection, prompts: list[str], state: Path, executor: Executor) -> None:
    settings, pipeline = section.mini, state / "pipeline"
    if settings is None:
        raise InputError(
            "teacher.source is mini but teacher.mini is null; take conf/teacher/mini.yaml as it is"
        )
    if not pipeline.exists():
        meanings = getattr(find("data", section.data), "meanings", None)
        with atomic_folder(pipeline) as folder:
            mini.save_pipeline(
                folder, section.shape, prompts, settings, section.shift, section.seed, meanings
            )
    candidates = state / "candidates"
    spec = {
        "teacher": section.model_dump(mode="json"),
        "prompts": prompts,
        "pipeline": str(pipeline),
        "candidates": str(candidates),
        "state": str(state),
        "threads": settings.threads,
    }
    executor.train(
        pretrain.loop, spec, state=state, workers=settings.workers, threads=settings.threads, max_failures=3,
        device=section.device,
    )  # fmt: skip
    trained = candidates / f"step_{settings.steps:06d}-ema_{settings.ema_length:g}" / "transformer"
    with atomic_folder(pipeline / "transformer") as folder:
        shutil.copytree(trained, folder, dirs_exist_ok=True)


def _facts(section: TeacherSection, pipeline: Path) -> dict[str, Any]:
    digest = sha256_folder(pipeline)
    if section.hash is not None and section.hash != digest:
        raise InputError(
            f"the teacher at {section.source} has content hash {digest}, teacher.hash expects {section.hash};"
            " it changed meanwhile: set teacher.hash to the new one, or to null"
        )
    keys = (
        "source", "family", "data", "guidance", "steps", "shift", "solver", "precision", "negative_prompt", "licence",
    )  # fmt: skip
    return {"hash": digest, "shape": list(section.shape), **{k: getattr(section, k) for k in keys}}


def _gate(
    section: TeacherSection, facts: dict[str, Any], state: Path, prompts: list[str], executor: Executor
) -> dict[str, Any] | None:
    """Accuracy of judge and teacher; InputError if one is below what ``teacher.gate`` asks."""
    gate = section.gate
    if gate is None:
        return None
    judge = judge_for(section.data)
    judged = judge.accuracy_on("test")
    if judged < gate.judge_accuracy:
        raise InputError(
            f"the judge recognises {judged:.1%} of the held-out real images, teacher.gate.judge_accuracy asks for"
            f" {gate.judge_accuracy:.1%}; its verdicts would mean nothing: mend the judge or the data"
        )
    keys = ("family", "guidance", "steps", "shift", "solver", "negative_prompt", "precision")
    teacher = Teacher(str(state / "pipeline"), shape=section.shape, **{k: facts[k] for k in keys})
    asked = cycle(prompts, gate.samples)
    job = Job(teacher, asked, tuple(range(gate.samples)), section.seed, section.steps, device=section.device)
    jobs = split_jobs(job, GATE_BATCH)
    results = executor.map(_correct, [(j, judge) for j in jobs], "gate", device=section.device)
    accuracy = sum(results) / gate.samples
    print(
        f"teacher: {accuracy:.1%} of {gate.samples} guided {section.steps}-step samples recognised",
        flush=True,
    )
    if accuracy < gate.teacher_accuracy:
        raise InputError(
            f"the teacher shows what the prompt asks for in {accuracy:.1%} of {gate.samples} samples,"
            f" teacher.gate.teacher_accuracy asks for {gate.teacher_accuracy:.1%};"
            " train it longer (teacher.mini.steps) before distilling it"
        )
    return {"judge_accuracy": judged, "teacher_accuracy": accuracy}


def _correct(item: tuple[Job, Judge]) -> int:
    job, judge = item
    torch.set_num_threads(1)
    return int(judge.correct(judge.look(sample_pixels(job)), job.prompts).sum())
