"""train: the student's candidates; ``runs/train/{candidates/<name>/transformer,curves.csv,health.json}``."""

from __future__ import annotations

from pathlib import Path

from rcm_core.config.sections import Params
from rcm_core.config.workers import worlds
from rcm_core.errors import InputError
from rcm_core.execution import Executor, TrainJob
from rcm_core.pipelines.teacher_folder import pipeline_of, verified_pipeline
from rcm_core.record import clear_state, dump, fingerprint, hash_inputs, live_state, write_record
from rcm_core.samplers.jobs import Teacher
from rcm_core.storage.checked_json import fit
from rcm_core.storage.files import atomic, atomic_folder, require_space, write_json
from rcm_core.storage.formats import read_text
from rcm_core.storage.links import place_folder
from rcm_core.storage.run_folder import RELATIVE, RunFolder
from rcm_core.storage.schemas import CurveState, HealthFacts
from rcm_core.training import warm_start
from rcm_core.training.curves import Curves
from rcm_core.training.disk_usage import (
    CHECKPOINTS,
    candidate_bytes,
    checkpoint_bytes,
    count_candidates,
    shapes_of,
    trained_weights,
)
from rcm_core.training.memory_usage import peak_memory
from rcm_core.units import MIB

STAGE = "train"
OVERHEAD = 16 * MIB
"""Bytes for everything besides weights: headers of checkpoints, curves, logs."""


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Train, or resume exactly this training; the candidates appear after the last step."""
    section = params.train
    parameters = dump(train=section, method=params.method)
    inputs = hash_inputs(workspace, [RELATIVE.teacher_file, RELATIVE.manifest])
    verified_pipeline(workspace)
    numbers = worlds(section, "params.yaml")
    origin = None
    if section.warm_start is not None:
        cache = executor.state_root / "cache"
        origin = warm_start.resolve(section.warm_start, Teacher.read(workspace).family, workspace, cache)
        inputs |= origin.hashes
    with write_record(STAGE, workspace, parameters, inputs, section.seed, section.device) as extra:
        state = live_state(executor.state_root, STAGE, fingerprint(STAGE, params, parameters, inputs))
        require_space(state, _size(params, workspace))
        from rcm_core.training import distill  # imported late: the checks do not need torch.distributed

        spec = {
            "params": params.model_dump(mode="json"),
            "workspace": str(workspace),
            "state": str(state),
            "cache": str(executor.state_root / "cache"),
            "warm_start": origin and {"student": str(origin.student), "teacher": str(origin.teacher)},
        }
        executor.train(TrainJob(
            distill.loop, spec, state=state, workers=numbers, threads=section.threads,
            max_failures=section.max_failures, device=section.device,
        ))  # fmt: skip
        write(RunFolder.of(workspace), state)
        extra["peak_memory_bytes"] = peak_memory(state)
        extra["method"] = params.method["name"]
    clear_state(state)


def _size(params: Params, workspace: Path) -> int:
    """Return the bytes that the candidates and the checkpoints need."""
    section, folder = params.train, pipeline_of(workspace) / "transformer"
    trained = trained_weights(section, shapes_of(folder.glob("*.safetensors")))
    candidate = candidate_bytes(section, Teacher.read(workspace).precision, trained)
    candidates = candidate * count_candidates(section)
    return OVERHEAD + candidates + CHECKPOINTS * checkpoint_bytes(section, trained)


def write(run_folder: RunFolder, state: Path) -> None:
    """Write candidates, curves and health of the finished training in ``state``, each atomically."""
    finished = state / "curves.json"
    if not finished.is_file():
        raise InputError(f"{state} holds no finished training; remove it and run `dvc repro train` again")
    remedy = f"remove {state} and run `dvc repro train` again"
    curves = fit(CurveState, read_text(finished, remedy), str(finished), remedy)
    place = state / "health.json"
    health = fit(HealthFacts, read_text(place, remedy), str(place), remedy)
    with atomic_folder(run_folder.candidates) as folder:
        place_folder(state / "candidates", folder)  # skips hidden names: unfinished files of a killed run
    with atomic(run_folder.curves) as temporary:
        Curves(**curves).write(temporary)
    write_json(run_folder.health_file, health)
