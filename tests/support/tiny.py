"""A complete tiny run: every real stage, with networks that train for a second."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from rcm_core.config.base import check
from rcm_core.config.sections import Params
from rcm_core.execution import Executor
from rcm_core.stages import evaluate, prompts, publish, report, select, teacher, train, trajectories

ROOT = Path(__file__).parents[2]
STAGES = (teacher, prompts, trajectories, train, select, evaluate, report, publish)


def tiny_values() -> dict[str, Any]:
    """Return params.yaml with a teacher trained in the run, the published lambda and small sizes."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["teacher"] = trained_teacher() | {"steps": 4, "gate": None}
    values["method"] |= {"dmd_weight": 1.0}
    values["teacher"]["mini"] |= {
        "layers": 2, "heads": 2, "head_dim": 16, "ffn_dim": 64, "text_dim": 32, "steps": 12, "batch": 16,
        "checkpoint_every": 4, "threads": 1,
    }  # fmt: skip
    values["trajectories"] |= {"samples": 40, "shard_size": 16}
    values["train"] |= {
        "iterations": 12, "batch": 8, "candidate_every": 6, "checkpoint_every": 4, "log_every": 4, "threads": 1,
    }  # fmt: skip
    values["train"]["health"] |= {"probe_every": 3, "probe_samples": 8}
    values["method"] |= {"warmup": 4}
    values["select"] |= {"samples": 80, "bootstrap": 5}
    values["evaluate"] |= {
        "samples": 80, "diversity_prompts": 4, "diversity_samples": 5, "timing_samples": 4, "bootstrap": 5,
    }  # fmt: skip
    return values


def trained_teacher() -> dict[str, Any]:
    """Return the section of the embedded teacher that is trained instead of shipped."""
    section: dict[str, Any] = yaml.safe_load((ROOT / "conf/teacher/mini-train.yaml").read_text())["teacher"]
    return section


def prepare(folder: Path, values: dict[str, Any]) -> Params:
    """Write prompts and params.yaml to ``folder``; return the checked parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "data", folder / "data", dirs_exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return check(Params, values, "params.yaml")


def run_all(folder: Path, params: Params, executor: Executor) -> None:
    """Run the eight stages in order."""
    for stage in STAGES:
        stage.run(params, folder, executor)
