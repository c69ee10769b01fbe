"""Copies the teacher that was trained here into the repository: its network as bfloat16, and the record of its making.

``python scripts/data/ship_teacher.py data/scenes/teacher`` from the project root, after ``dvc repro teacher`` with
``teacher=scenes-train``; then put the printed hash into conf/teacher/scenes.yaml. ``data/mini/teacher``, on which
methods are compared, is made alike of ``teacher=mini-train`` (``--guidance 1.5``). The record says too how often the
shipped teacher shows what the test prompts ask for, each prompt once.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rcm_core.evaluation.judges.build import judge_for
from rcm_core.samplers.jobs import Job, Teacher, sample_pixels, split_jobs
from rcm_core.storage.files import atomic_folder, read_json, sha256_folder, write_json
from rcm_core.storage.run_folder import RELATIVE, RunFolder
from rcm_core.units import MIB

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
MOST = 12 * MIB
BATCH = 64


def ship(run: RunFolder, place: Path) -> str:
    """Writes ``place/{pipeline,record.json}`` from the trained teacher; the content hash of the pipeline."""
    with atomic_folder(place / "pipeline") as folder:
        shutil.copytree(run.teacher_pipeline, folder, dirs_exist_ok=True)
        halved = {name: value.bfloat16() for name, value in load_file(folder / WEIGHTS).items()}
        save_file(halved, folder / WEIGHTS, metadata={"format": "pt"})
    size = sum(path.stat().st_size for path in (place / "pipeline").rglob("*") if path.is_file())
    if size > MOST:
        raise SystemExit(f"{place} would hold {size:,} bytes; ship at most {MOST:,}")
    record = read_json(run.record_file("teacher"), "teacher")
    trained = run.teacher()["hash"]
    digest = sha256_folder(place / "pipeline")
    write_json(place / "record.json", {**record, "trained_hash": trained, "shipped_hash": digest})
    return digest


def score(run: RunFolder, place: Path, guidance: float) -> dict[str, Any]:
    """Accuracy of the shipped teacher on the test prompts at its full steps, by category and their mean."""
    facts = run.teacher()
    keys = ("family", "steps", "shift", "solver", "negative_prompt")
    shape = tuple(facts["shape"])
    teacher = Teacher(str(place / "pipeline"), shape=shape, guidance=guidance, **{k: facts[k] for k in keys})
    prompts = tuple(run.prompts("test"))
    whole = Job(teacher, prompts, tuple(range(len(prompts))), 0, teacher.steps)
    judge = judge_for(facts["data"])
    pixels = torch.cat([sample_pixels(job) for job in split_jobs(whole, BATCH)])
    right = judge.correct(pixels, prompts)
    kinds = np.array([judge.category(prompt) for prompt in prompts])
    shares = {kind: float(right[kinds == kind].mean()) for kind in judge.categories}
    return {
        "samples": len(prompts),
        "guidance": guidance,
        "steps": teacher.steps,
        "accuracy": float(right.mean()),
        **({"accuracy_mean": fmean(shares.values())} if shares else {}),
        **{f"accuracy_{kind}": value for kind, value in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--runs", type=Path, default=RELATIVE.root, help="where the teacher stage has run")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale of the scored samples")
    options = parser.parse_args()
    print(f"hash: {ship(RunFolder(options.runs), options.place)}")
    record = options.place / "record.json"
    found = score(RunFolder(options.runs), options.place, options.guidance)
    write_json(record, {**read_json(record, "teacher"), "test": found})
    print(found)


if __name__ == "__main__":
    main()
