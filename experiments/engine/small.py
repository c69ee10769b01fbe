"""A small student for trainings on several ranks, with its own teacher and trajectories."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from infra.executors.local import LocalExecutor
from infra.params import compose
from infra.state import state_home
from rcm_core.record import version
from rcm_core.stages import prompts, teacher, trajectories
from rcm_core.storage.files import write_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
WORKERS = 2
OVERRIDES = (
    "teacher=mini-train", "method=rcm", "method.warmup=3",
    "teacher.gate=null", "teacher.steps=4", "teacher.device=cpu", "teacher.mini.steps=2", "teacher.mini.threads=1",
    "trajectories.samples=64", "trajectories.shard_size=32", "trajectories.device=cpu", "train.device=cpu",
    f"train.workers={WORKERS}", "train.threads=1", "train.health.probe_every=null",
)  # fmt: skip


def workspace(name: str, *overrides: str) -> dict[str, Any]:
    """Create a workspace with all inputs of ``train``; return its parameters and path as plain values."""
    place = state_home(ROOT) / "engine" / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for shared in ("conf", "data"):
        (place / shared).symlink_to(ROOT / shared)
    params = compose(place, [*OVERRIDES, *overrides])
    executor = LocalExecutor(place)
    executor.state_root = place / "state"
    for stage in (teacher, prompts, trajectories):
        stage.run(params, place, executor)
    return {"params": params.model_dump(mode="json"), "workspace": str(place), "cache": str(place / "cache")}


def spec_of(made: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    """Return the spec of a training loop with its own empty live state."""
    state = Path(made["workspace"]) / "state" / name
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    return {**made, "state": str(state), **more}


def write_result(name: str, facts: dict[str, Any]) -> None:
    """Write ``docs/results/<name>.json``: ``facts``, a description of the machine, versions."""
    machine = f"{len(os.sched_getaffinity(0))} cores, no GPU"
    versions = {package: version(package) for package in ("ray", "torch")}
    write_json(RESULTS / f"{name}.json", {"machine": machine, "versions": versions, **facts})
