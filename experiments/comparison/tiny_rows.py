"""Small runs of the comparison, as digests: ``python tiny_rows.py OUT.json TEACHER NAME...`` in a project's root.

It uses the code of the commit that is checked out there; ``experiments.comparison.rekey`` compares the digests of two
commits.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

SMALL: dict[str, dict[str, Any]] = {
    "teacher": {"steps": 4, "gate": None},
    "trajectories": {"samples": 96, "shard_size": 48, "routes": True, "keep_trajectories": True, "real": True},
    "train": {"iterations": 8, "candidate_every": 4, "checkpoint_every": 8, "log_every": 2, "threads": 1},
    "method": {
        "warmup": 2, "route_steps": 5, "trajectory_steps": 5, "pairs": 4, "rollout_steps": 3, "stage_every": 4,
    },
    "select": {"samples": 80, "steps": [1, 2], "bootstrap": 5},
    "evaluate": {
        "samples": 80, "steps": [1, 2], "diversity_prompts": 4, "diversity_samples": 5, "timing_samples": 4,
        "bootstrap": 5,
    },
}  # fmt: skip
"""Settings of a small run; settings that a method lacks are skipped."""
RATE_WARMUP = 2
"""Maximum warm-up of a learning rate: as in the presets, it ends before the tangent's."""
SHARED = ("teacher", "prompts", "trajectories")
OWN = ("train", "select", "evaluate")


def main() -> None:
    out, teacher, *names = sys.argv[1:]
    os.environ |= {"RCM_EXECUTOR": "local", "RCM_HOME": str(Path(out).absolute().with_suffix(".home"))}
    (place,) = Path().glob("*/compar*/plan.py")  # wherever that commit defines it
    plan = import_module(".".join(place.with_suffix("").parts)).plan_of(teacher)
    work = Path(out).absolute().with_suffix(".work")
    shared = prepare(work / "shared", plan, plan.variant(plan.anchor))
    for stage in SHARED:
        run(stage, shared)
    rows = {}
    for name in names:
        space = prepare(work / name, plan, plan.variant(name))
        for stage in SHARED:
            (space / "runs" / stage).symlink_to(shared / "runs" / stage)
        for stage in OWN:
            run(stage, space)
        rows[name] = {key: value for path in (shared, space) for key, value in digests(path / "runs")}
        Path(out).write_text(json.dumps(rows, indent=1))
        print(f"{name}: {len(rows[name])} digests", flush=True)


def prepare(space: Path, plan: Any, variant: Any) -> Path:
    """Create a workspace with the variant's parameters, reduced in size."""
    (space / "runs").mkdir(parents=True)
    for name in ("conf", "data"):
        (space / name).symlink_to(Path.cwd() / name)
    teacher = getattr(plan, "preset", None) or plan.teacher  # plans of older commits have no preset
    chosen = [f"teacher={teacher}", *plan.overrides, f"method={variant.preset}", *variant.overrides]
    import_module("infra.params").compose(space, chosen)
    values = yaml.safe_load((space / "params.yaml").read_text())
    for section, settings in SMALL.items():
        values[section] |= {key: value for key, value in settings.items() if key in values[section]}
    values["train"]["lr_warmup"] = shorten(values["train"]["lr_warmup"])
    (space / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return space


def shorten(warmup: Any) -> Any:
    """Return a learning rate's warm-up, shortened for all roles alike: they keep their proportions."""
    roles = warmup if isinstance(warmup, dict) else {"all": warmup}
    factor = min(1.0, RATE_WARMUP / max(1, *roles.values()))
    short = {role: round(updates * factor) for role, updates in roles.items()}
    return short if isinstance(warmup, dict) else short["all"]


def run(stage: str, space: Path) -> None:
    """Run ``stage`` in ``space``, which is the current folder of a stage's process."""
    import_module("infra.launch").run_stage(stage, space / "params.yaml", space)


def digests(runs: Path) -> Iterator[tuple[str, str]]:
    """Yield digests: weights, trajectories and samples by tensor; curves by column; selection and metrics by number."""
    for file in sorted(runs.rglob("*.safetensors")):
        name = file.relative_to(runs).as_posix()
        if not name.startswith("teacher/"):
            for key, tensor in load_file(file).items():
                text = f"{tensor.dtype} {tensor.shape}".encode() + tensor.tobytes()
                yield f"{name} {key}", hashlib.sha256(text).hexdigest()
    for file in sorted(runs.glob("train/curves.csv")):
        rows = list(csv.DictReader(file.read_text().splitlines()))
        for column in rows[0]:
            yield f"curves {column}", json.dumps([row[column] for row in rows])
    for file in sorted([*runs.glob("select/selection.json"), *runs.glob("evaluate/quality.json")]):
        yield from (
            (f"{file.name} {key}", str(value)) for key, value in numbers(json.loads(file.read_text()))
        )


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in plain JSON values, with its path."""
    if isinstance(value, dict):
        for key in value:
            yield from numbers(value[key], f"{path}/{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from numbers(item, f"{path}/{i}")
    elif isinstance(value, int | float):
        yield path, value


if __name__ == "__main__":
    main()
