"""Workspaces of the comparison: one per teacher with the shared stages, one per run with links to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from experiments.comparison.plan import Plan, Variant
from infra.executors.local import LocalExecutor
from infra.params import compose
from infra.state import state_home
from rcm_core.code_hash import code_hash
from rcm_core.config.sections import Params
from rcm_core.execution import Executor
from rcm_core.record import choices_of, hash_inputs
from rcm_core.storage.files import atomic, write_json
from rcm_core.storage.run_folder import RELATIVE, RunFolder

ROOT = Path(__file__).parents[2]
SHARED = ("teacher", "prompts", "trajectories")
OWN = ("train", "select", "evaluate")
SECTIONS = {"train": ("train", "method"), "select": ("select", "sampler")}
"""Sections of the parameters that a stage depends on, for stages that need others than the one of their name."""
INPUTS = {
    "trajectories": [RELATIVE.teacher_file, RELATIVE.prompts_file],
    "train": [RELATIVE.teacher_file, RELATIVE.manifest],
    "select": [RELATIVE.teacher_file, RELATIVE.prompts_file, RELATIVE.manifest, RELATIVE.candidates],
    "evaluate": [
        RELATIVE.teacher_file,
        RELATIVE.prompts_file,
        RELATIVE.manifest,
        RELATIVE.selection_file,
        RELATIVE.student,
    ],
}
FORMAT = 1
"""Format of the result files; a result of another format is computed again."""


@dataclass(frozen=True)
class Home:
    """Working folder and results folder of the comparison."""

    work: Path
    results: Path

    @classmethod
    def usual(cls) -> Home:
        return cls(state_home(ROOT) / "compare", ROOT / "docs/results/compare")

    def shared_workspace(self, plan: Plan) -> Path:
        """Return the workspace with teacher, prompts and trajectories."""
        return self.work / plan.teacher / "shared"

    def samples(self, plan: Plan) -> Path:
        """Return the folder of the teacher's own samples, the reference of all runs."""
        return self.work / plan.teacher / "samples"

    def run(self, plan: Plan, name: str, seed: int, iterations: int) -> Path:
        """Return a run's workspace; two budgets with the same run share it."""
        return self.work / plan.teacher / "runs" / f"{name}-{seed}-{iterations}"

    def result(self, plan: Plan, budget: str, name: str, seed: int) -> Path:
        return self.results / plan.teacher / budget / f"{name}-{seed}.json"

    def failure(self, plan: Plan, budget: str, name: str, seed: int) -> Path:
        """Return the path of the file that states why a run has no result."""
        return self.results / plan.teacher / budget / "failed" / f"{name}-{seed}.json"


def compose_variants(plan: Plan, home: Home) -> dict[str, Params]:
    """Compose every variant's parameters from conf/, on the same data.

    Routes and real images are stored if any variant needs them.
    """
    place = workspace(home.work / plan.teacher / "compose")
    base = [plan.teacher_override, *plan.overrides]
    alone = {v.name: compose(place, [*base, f"method={v.preset}", *v.overrides]) for v in plan.variants}
    shared = {
        key: any(getattr(p.trajectories, key) for p in alone.values())
        for key in ("keep_trajectories", "real")
    }
    return {
        name: p.model_copy(update={"trajectories": p.trajectories.model_copy(update=shared)})
        for name, p in alone.items()
    }


def settle_run(params: Params, seed: int, iterations: int) -> Params:
    """Return ``params`` for one run: candidates at half and at the end."""
    train = params.train.model_copy(
        update={"seed": seed, "iterations": iterations, "candidate_every": -(-iterations // 2)}
    )
    return params.model_copy(update={"train": train})


def workspace(path: Path) -> Path:
    """Create the folder ``path`` with the project files that stages read."""
    path.mkdir(parents=True, exist_ok=True)
    for name in ("conf", "data"):
        if not (path / name).exists():
            (path / name).symlink_to(ROOT / name)
    return path


def run_workspace(home: Home, plan: Plan, variant: Variant, params: Params) -> Path:
    """Create a run's workspace with its params.yaml and links to the shared stages."""
    path = workspace(home.run(plan, variant.name, params.train.seed, params.train.iterations))
    share_stages(path, home.shared_workspace(plan))
    write_params(path, params)
    return path


def share_stages(path: Path, shared: Path) -> None:
    """Link the outputs of the first stages in the workspace ``shared`` into the workspace ``path``."""
    run, source = RunFolder.of(path), RunFolder.of(shared)
    run.root.mkdir(exist_ok=True)
    for stage in SHARED:
        if not run.stage(stage).is_symlink():
            run.stage(stage).symlink_to(source.stage(stage))


def write_params(path: Path, params: Params) -> None:
    """Write ``params`` as params.yaml of the workspace ``path``."""
    with atomic(path / "params.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))


def executor_in(path: Path) -> LocalExecutor:
    """Return an executor with its live state in the workspace ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(path)
    executor.state_root = path / "state"
    return executor


def ensure(stage: str, params: Params, path: Path, executor: Executor) -> bool:
    """Run ``stage`` in the workspace ``path`` unless it has finished there with these parameters, inputs and code."""
    done = path / "done" / f"{stage}.json"
    key = {"key": stage_key(stage, params, path)}
    if done.is_file() and json.loads(done.read_text()) == key:
        return False
    done.unlink(missing_ok=True)
    import_module(f"rcm_core.stages.{stage}").run(params, path, executor)
    write_json(done, key)
    return True


def stage_key(stage: str, params: Params, path: Path) -> str:
    """Return a digest of all that determines the output of ``stage``: parameters, contents of its inputs, code."""
    inputs = hash_inputs(path, INPUTS.get(stage, _prompts(params)))
    return digest([_sections(stage, params), inputs, code_of(stage, params)])


def run_key(params: Params, path: Path) -> str:
    """Return a digest of parameters, teacher, prompts, and the code of the run's stages and of the one before.

    Trajectories count by their recipe and not by their bytes, which differ between machines by rounding. So a
    comparison can continue on another machine.
    """
    stages = [[_sections(stage, params), code_of(stage, params)] for stage in ("trajectories", *OWN)]
    return digest([FORMAT, _teacher(path), hash_inputs(path, _prompts(params)), stages])


def cost_key(params: Params, path: Path) -> str:
    """Return a digest of teacher, parameters and code of the training, but not of the machine."""
    return digest([_teacher(path), _sections("train", params), code_of("train", params)])


def digest(value: Any) -> str:
    """Return the digest of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def code_of(stage: str, params: Params) -> str:
    """Return the digest of the code that ``stage`` runs with the choices in ``params``."""
    return _code(stage, tuple(choices_of(params).items()))


def _teacher(path: Path) -> dict[str, Any]:
    return {k: v for k, v in RunFolder.of(path).teacher().items() if k != "gate"}


def _prompts(params: Params) -> list[str]:
    return [params.prompts.train, params.prompts.validation, params.prompts.test]


def _sections(stage: str, params: Params) -> Mapping[str, Any]:
    values = params.model_dump(mode="json")
    return {name: values[name] for name in SECTIONS.get(stage, (stage,))}


@lru_cache(maxsize=256)
def _code(stage: str, choices: tuple[tuple[str, str], ...]) -> str:
    return code_hash(f"rcm_core.stages.{stage}", dict(choices))
