"""Workspaces of the comparison: one per teacher with what all runs share, one per run with links to it."""

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
"""Sections of the parameters that a stage depends on, where it is not the one of its name alone."""
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
"""Of the result files; a result of another format is made again."""


@dataclass(frozen=True)
class Home:
    """Where the comparison works, and where its results go."""

    work: Path
    results: Path

    @classmethod
    def usual(cls) -> Home:
        return cls(state_home(ROOT) / "compare", ROOT / "docs/results/compare")

    def shared_workspace(self, plan: Plan) -> Path:
        """The workspace in which teacher, prompts and trajectories are made."""
        return self.work / plan.teacher / "shared"

    def samples(self, plan: Plan) -> Path:
        """Where the teacher's own samples are kept, which all runs are measured against."""
        return self.work / plan.teacher / "samples"

    def run(self, plan: Plan, name: str, seed: int, iterations: int) -> Path:
        """A run's workspace: two budgets that come to the same run share it."""
        return self.work / plan.teacher / "runs" / f"{name}-{seed}-{iterations}"

    def result(self, plan: Plan, budget: str, name: str, seed: int) -> Path:
        return self.results / plan.teacher / budget / f"{name}-{seed}.json"

    def failure(self, plan: Plan, budget: str, name: str, seed: int) -> Path:
        """In place of a result: why there is none."""
        return self.results / plan.teacher / budget / "failed" / f"{name}-{seed}.json"


def compose_variants(plan: Plan, home: Home) -> dict[str, Params]:
    """Every variant's parameters by conf/'s own composition, on the same data: routes and real images are kept if
    any variant needs them.
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
    """``params`` for one run: candidates at half and at the end."""
    train = params.train.model_copy(
        update={"seed": seed, "iterations": iterations, "candidate_every": -(-iterations // 2)}
    )
    return params.model_copy(update={"train": train})


def workspace(path: Path) -> Path:
    """``path`` as a folder that has what stages read of a project."""
    path.mkdir(parents=True, exist_ok=True)
    for name in ("conf", "data"):
        if not (path / name).exists():
            (path / name).symlink_to(ROOT / name)
    return path


def run_workspace(home: Home, plan: Plan, variant: Variant, params: Params) -> Path:
    """A run's workspace with its params.yaml and links to what is shared."""
    path = workspace(home.run(plan, variant.name, params.train.seed, params.train.iterations))
    share_stages(path, home.shared_workspace(plan))
    write_params(path, params)
    return path


def share_stages(path: Path, shared: Path) -> None:
    """Link what the first stages left in the workspace ``shared`` into the workspace ``path``."""
    run, source = RunFolder.of(path), RunFolder.of(shared)
    run.root.mkdir(exist_ok=True)
    for stage in SHARED:
        if not run.stage(stage).is_symlink():
            run.stage(stage).symlink_to(source.stage(stage))


def write_params(path: Path, params: Params) -> None:
    """``params`` as params.yaml of the workspace ``path``."""
    with atomic(path / "params.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))


def executor_in(path: Path) -> LocalExecutor:
    """An executor whose live state lies in the workspace ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(path)
    executor.state_root = path / "state"
    return executor


def ensure(stage: str, params: Params, path: Path, executor: Executor) -> bool:
    """Runs ``stage`` in the workspace ``path`` unless it has ended there with these parameters, inputs and code."""
    done = path / "done" / f"{stage}.json"
    key = {"key": stage_key(stage, params, path)}
    if done.is_file() and json.loads(done.read_text()) == key:
        return False
    done.unlink(missing_ok=True)
    import_module(f"rcm_core.stages.{stage}").run(params, path, executor)
    write_json(done, key)
    return True


def stage_key(stage: str, params: Params, path: Path) -> str:
    """What the outcome of ``stage`` depends on: parameters, contents of its inputs, code."""
    inputs = hash_inputs(path, INPUTS.get(stage, _prompts(params)))
    return digest([_sections(stage, params), inputs, code_of(stage, params)])


def run_key(params: Params, path: Path) -> str:
    """What a run's result depends on: parameters, teacher, prompts, code of its stages and of the one before.

    Trajectories count by their recipe and not by their bytes, in which machines differ by rounding: a comparison that
    was begun on one continues on another.
    """
    stages = [[_sections(stage, params), code_of(stage, params)] for stage in ("trajectories", *OWN)]
    return digest([FORMAT, _teacher(path), hash_inputs(path, _prompts(params)), stages])


def cost_key(params: Params, path: Path) -> str:
    """What the cost of an iteration depends on: teacher, parameters and code of the training, on whatever machine."""
    return digest([_teacher(path), _sections("train", params), code_of("train", params)])


def digest(value: Any) -> str:
    """Of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def code_of(stage: str, params: Params) -> str:
    """Digest of the code that ``stage`` runs with the choices in ``params``."""
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
