"""A stage's record (record.json), and the live state that it may resume from."""

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
    """Return the content hash of each input path (relative to ``workspace``); InputError if one is missing."""
    hashes = {}
    for name in map(str, inputs):
        path = workspace / name
        if not path.exists():
            raise InputError(f"{name} does not exist; make it with `dvc repro`")
        hashes[name] = sha256_folder(path) if path.is_dir() else sha256(path)
    return hashes


def choices_of(params: Params) -> dict[str, str]:
    """Return the implementation that ``params`` choose in each registry folder."""
    return {
        "methods": params.method["name"],
        "models": params.teacher.family,
        "benchmarks": params.teacher.data,
    }


def fingerprint(stage: str, params: Params, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the key of a stage's live state: a hash of its parameters, its inputs and its code."""
    code = code_hash(f"rcm_core.stages.{stage}", choices_of(params))
    text = json.dumps([stage, parameters, inputs, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def dump(**sections: Section | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``sections`` as plain JSON values, without those that are None."""
    present = {k: v for k, v in sections.items() if v is not None}
    return {k: v.model_dump(mode="json") if isinstance(v, Section) else dict(v) for k, v in present.items()}


@contextmanager
def write_record(
    stage: str,
    workspace: Path,
    parameters: dict[str, Any],
    inputs: Mapping[str, str],
    seed: int | None,
    device: str,
) -> Iterator[dict[str, Any]]:
    """Write ``runs/<stage>/record.json`` if the block succeeds; the block may add entries to the yielded dict.

    First removes the temporary files of a killed run of this stage.
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
    """Return the installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(workspace: Path) -> str | None:
    """Return the code's commit (with ``-dirty`` if tracked files differ from it), or None outside git."""
    command = ["git", "-C", str(workspace), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def live_state(root: Path, stage: str, key: str) -> Path:
    """Return the folder of a stage's live state, created if it does not exist.

    Raises InputError if its fingerprint.json has another fingerprint.
    """
    folder = root / f"{stage}-{key}"
    owner, expected = folder / "fingerprint.json", {"stage": stage, "fingerprint": key}
    if owner.exists():
        content = owner.read_text()
        if content != json_text(expected):
            raise InputError(
                f"{folder} was started with {' '.join(content.split())}, but this run is {stage}-{key}"
                f" and cannot resume it; remove {folder} to start again"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(owner, expected)
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of ``files.atomic`` and ``atomic_folder``; no other process may write there."""
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def clear_state(folder: Path) -> None:
    """Remove live state once the stage's outs are complete."""
    shutil.rmtree(folder, ignore_errors=True)
