"""teacher: checks an external teacher, or trains the built-in one; ``runs/teacher/{pipeline,teacher.json}``.

An external teacher stays in its place: teacher.json has its content hash, and ``pipeline`` is an empty folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from rcm_core.config.sections import Params, TeacherSection
from rcm_core.data.prompts import FEWEST, cycle, read_prompts
from rcm_core.errors import InputError
from rcm_core.evaluation.judges.base import Judge
from rcm_core.evaluation.judges.build import judge_for
from rcm_core.execution import Executor, TrainJob
from rcm_core.pipelines import mini
from rcm_core.pipelines.shape_check import check_teacher_shape
from rcm_core.pipelines.teacher_folder import TRAINED, given_pipeline
from rcm_core.protocols import Family
from rcm_core.record import clear_state, dump, fingerprint, hash_inputs, live_state, write_record
from rcm_core.registry import find_benchmark, find_family
from rcm_core.samplers.jobs import Job, Teacher, sample_pixels, split_jobs
from rcm_core.storage.fetch import remember
from rcm_core.storage.files import atomic_folder, sha256_folder, write_json
from rcm_core.storage.links import place_folder
from rcm_core.storage.pipeline_files import refuse_changed, signatures
from rcm_core.storage.run_folder import RunFolder
from rcm_core.training.memory_usage import peak_memory

STAGE = "teacher"
GATE_BATCH = 100


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Write teacher.json, and the pipeline if it is trained here; InputError if the teacher misses its gate."""
    section = params.teacher
    parameters = dump(teacher=section)
    train = read_prompts(workspace / params.prompts.train, FEWEST)
    validation = read_prompts(workspace / params.prompts.validation)
    inputs = hash_inputs(workspace, [params.prompts.train, params.prompts.validation])
    run_folder = RunFolder.of(workspace)
    with write_record(STAGE, workspace, parameters, inputs, section.seed, section.device) as extra:
        state = live_state(executor.state_root, STAGE, fingerprint(STAGE, params, parameters, inputs))
        if section.source == TRAINED:
            pipeline = state / "pipeline"
            _train_mini(section, train, state, executor)
        else:
            pipeline = given_pipeline(section.source, section.endpoint, workspace, section.variant)
        before = signatures(pipeline)
        family = _family(section)
        family.check_folder(pipeline)
        check_teacher_shape(family, pipeline, section.shape, section.source)
        facts = _facts(section, pipeline)
        refuse_changed(before, signatures(pipeline), section.source)
        facts["gate"] = _gate(section, facts, pipeline, validation, executor)
        with atomic_folder(run_folder.teacher_pipeline) as folder:
            if section.source == TRAINED:
                place_folder(pipeline, folder)
        write_json(run_folder.teacher_file, facts)
        extra["peak_memory_bytes"] = peak_memory(state)
    clear_state(state)


def _family(section: TeacherSection) -> Family:
    return find_family(section.family)


def _train_mini(section: TeacherSection, prompts: list[str], state: Path, executor: Executor) -> None:
    from rcm_core.training import pretrain

    settings, pipeline = section.mini, state / "pipeline"
    if settings is None:
        raise InputError(
            "teacher.source is mini but teacher.mini is null; use conf/teacher/mini-train.yaml as it is"
        )
    if section.variant is not None:
        raise InputError(
            f"teacher.source is mini but teacher.variant = {section.variant!r}, which only teachers in a folder have;"
            " set it to null"
        )
    if not pipeline.exists():
        meanings = find_benchmark(section.data).meanings
        with atomic_folder(pipeline) as folder:
            mini.save_pipeline(
                folder, section.shape, prompts, settings, section.shift, section.seed, meanings
            )
    check_teacher_shape(_family(section), pipeline, section.shape, section.source)
    candidates = state / "candidates"
    spec = {
        "teacher": section.model_dump(mode="json"),
        "prompts": prompts,
        "pipeline": str(pipeline),
        "candidates": str(candidates),
        "state": str(state),
        "threads": settings.threads,
    }
    executor.train(TrainJob(
        pretrain.loop, spec, state=state, workers=settings.workers, threads=settings.threads, max_failures=3,
        device=section.device,
    ))  # fmt: skip
    trained = candidates / f"step_{settings.steps:06d}-ema_{settings.ema_length:g}" / "transformer"
    with atomic_folder(pipeline / "transformer") as folder:
        shutil.copytree(trained, folder, dirs_exist_ok=True)


def _facts(section: TeacherSection, pipeline: Path) -> dict[str, Any]:
    digest = sha256_folder(pipeline)
    if section.hash is not None and section.hash != digest:
        raise InputError(
            f"the teacher at {section.source} has content hash {digest}, teacher.hash expects {section.hash};"
            " it has changed; set teacher.hash to the new one, or to null"
        )
    where: dict[str, Any] = {}
    if "://" in section.source:
        remember(digest, pipeline)
        where = {"endpoint": section.endpoint}
    if section.variant is not None:
        where["variant"] = section.variant
    keys = (
        "source", "family", "data", "guidance", "steps", "shift", "solver", "grid", "precision", "negative_prompt",
        "licence",
    )  # fmt: skip
    return {"hash": digest, **where, "shape": list(section.shape), **{k: getattr(section, k) for k in keys}}


def _gate(
    section: TeacherSection, facts: dict[str, Any], pipeline: Path, prompts: list[str], executor: Executor
) -> dict[str, Any] | None:
    """Return the accuracies of judge and teacher; InputError if one is below ``teacher.gate``."""
    gate = section.gate
    if gate is None:
        return None
    judge = judge_for(section.data)
    judged = judge.accuracy_on("test")
    if judged < gate.judge_accuracy:
        raise InputError(
            f"the judge recognises {judged:.1%} of the held-out real images, but teacher.gate.judge_accuracy requires"
            f" {gate.judge_accuracy:.1%}; correct the judge or the data, or lower teacher.gate.judge_accuracy"
        )
    teacher = Teacher.of(pipeline, facts)
    cycled = cycle(prompts, gate.samples)
    job = Job(teacher, cycled, tuple(range(gate.samples)), section.seed, section.steps, device=section.device)
    jobs = split_jobs(job, GATE_BATCH)
    results = executor.map(_correct, [(j, judge) for j in jobs], "gate", device=section.device)
    accuracy = sum(results) / gate.samples
    print(
        f"teacher: {accuracy:.1%} of {gate.samples} guided {section.steps}-step samples recognised",
        flush=True,
    )
    if accuracy < gate.teacher_accuracy:
        raise InputError(
            f"the judge recognises the prompt in {accuracy:.1%} of {gate.samples} samples of the teacher, but"
            f" teacher.gate.teacher_accuracy requires {gate.teacher_accuracy:.1%};"
            " train it longer (teacher.mini.steps) before distilling it"
        )
    return {"judge_accuracy": judged, "teacher_accuracy": accuracy}


def _correct(item: tuple[Job, Judge]) -> int:
    job, judge = item
    torch.set_num_threads(1)
    return int(judge.correct(judge.look(sample_pixels(job)), job.prompts).sum())
