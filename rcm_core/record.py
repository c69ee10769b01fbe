"""What a stage leaves behind about itself, and the live state it may resume from."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rcm_core.code_hash import code_hash
from rcm_core.config.base import Section
from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.storage.files import json_text, sha256, sha256_folder, write_json
from rcm_core.storage.run_folder import RunFolder

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "numpy",
    "pandas",
    "scikit-learn",
    "ray",
    "rcm-distill",
)


def hash_inputs(workspace: Path, inputs: Sequence[Path | str]) -> dict[str, str]:
    """Content hash of each input path (relative to ``workspace``); InputError if one is missing."""
    hashes = {}
    for name in map(str, inputs):
        path = workspace / name
        if not path.exists():
            raise InputError(f"{name} does not exist; make it with `dvc repro`")
        hashes[name] = sha256_folder(path) if path.is_dir() else sha256(path)
    return hashes


def choices_of(params: Params) -> dict[str, str]:
    """Which of the implementations in each registry folder these parameters use."""
    return {
        "methods": params.method["name"],
        "models": params.teacher.family,
        "benchmarks": params.teacher.data,
    }


def fingerprint(stage: str, params: Params, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Key of a stage's live state: its parameters, its inputs, its code."""
    code = code_hash(f"rcm_core.stages.{stage}", choices_of(params))
    text = json.dumps([stage, parameters, inputs, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def dump(**sections: Section | Mapping[str, Any] | None) -> dict[str, Any]:
    """Sections as plain JSON values; those that are None are left out."""
    given = {k: v for k, v in sections.items() if v is not None}
    return {k: v.model_dump(mode="json") if isinstance(v, Section) else dict(v) for k, v in given.items()}


@contextmanager
def write_record(
    stage: str,
    workspace: Path,
    parameters: dict[str, Any],
    inputs: Mapping[str, str],
    seed: int | None,
    device: str,
) -> Iterator[dict[str, Any]]:
    """Writes ``runs/<stage>/record.json`` when the block ends well; the block may add to what it yields.

    Temporary files that a killed run of this stage left in its folder are removed first.
    """
    extra: dict[str, Any] = {}
    run = RunFolder.of(workspace)
    remove_leftovers(run.stage(stage))
    started = time.perf_counter()
    yield extra
    usage = [
        resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    peak = max(*usage, extra.pop("peak_memory_bytes", 0))
    record = {
        "stage": stage,
        "parameters": parameters,
        "inputs": dict(inputs),
        "commit": commit(workspace),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "seed": seed,
        "device": device,
        "machine": f"{platform.machine()} {platform.system()}",
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak,
        **extra,
    }
    write_json(run.record_file(stage), record)


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(workspace: Path) -> str | None:
    """The code's commit (``-dirty`` if tracked files differ from it), or None outside git."""
    command = ["git", "-C", str(workspace), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def live_state(root: Path, stage: str, key: str) -> Path:
    """The folder of a stage's live state; made, or reused if it belongs to exactly this fingerprint.

    Raises InputError if the folder says that it was started with another one.
    """
    folder = root / f"{stage}-{key}"
    owner, expected = folder / "fingerprint.json", {"stage": stage, "fingerprint": key}
    if owner.exists():
        found = owner.read_text()
        if found != json_text(expected):
            raise InputError(
                f"{folder} was started with {' '.join(found.split())}, but this run is {stage}-{key};"
                f" it is not resumed: remove {folder} to start again"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(owner, expected)
    return folder


def remove_leftovers(folder: Path) -> None:
    """Removes what ``files.atomic`` and ``atomic_folder`` had not renamed yet; the caller alone writes there."""
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def clear_state(folder: Path) -> None:
    """Removes live state once the stage's outs are complete."""
    shutil.rmtree(folder, ignore_errors=True)
