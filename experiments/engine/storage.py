"""Bytes that the stages read and write, and their peak memory, on a teacher of Wan 1.3B's size with LoRA.

    python -m experiments.engine.storage --json docs/results/storage.json      # 5.6 GB, about half an hour on two cores
    python -m experiments.engine.storage --layers 2                            # the same line, small

The network has Wan2.1 1.3B's blocks (30 of width 1536) in float32, on mini's digits: a text encoder of width 64 and
no VAE, so that the rest of the pipeline is only 1 MB. Each stage is one process. Reads and writes are all bytes that
pass through system calls (/proc/self/io: rchar, wchar, of the process and of its finished children), including Python's
packages. Reads also include tensors copied out of memory-mapped files, whether cached by the kernel or not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rcm_core.config.sections import MiniTraining
from rcm_core.data.prompts import read_prompts
from rcm_core.storage.files import json_text, write_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.units import GIB

ROOT = Path(__file__).parents[2]
STAGES = ("teacher", "prompts", "trajectories", "train", "select", "evaluate", "report", "publish")
LIMITS = {
    ("teacher", "written"): 0.02, ("teacher", "read"): 1.1, ("publish", "written"): 1.1, ("publish", "read"): 2.1,
}  # fmt: skip
"""Maximum shares of the pipeline's bytes."""
CANDIDATE = 0.3
"""Maximum share of the pipeline's bytes that training writes for a candidate."""
ABOVE = GIB
"""Maximum bytes of memory that teacher, select and publish use in addition to their network."""
HELD = {"teacher": 0, "select": 1, "publish": 1}
"""Number of networks that a stage holds in memory."""
CHILD = "--measured-stage"


def settings(values: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return params.yaml with that teacher, LoRA and the fewest samples that the stages accept."""
    values["teacher"] |= {"source": str(source), "hash": None, "mini": None, "gate": None, "steps": 2}
    values["trajectories"] |= {"samples": 4, "shard_size": 4}
    values["train"] |= {
        "iterations": 3, "batch": 1, "candidate_every": 3, "checkpoint_every": 3, "log_every": 1, "ema_lengths": [0.1],
        "lora": {"rank": 32, "alpha": 32, "targets": None}, "threads": 1,
    }  # fmt: skip
    values["train"]["health"] |= {"probe_every": None}
    values["method"] |= {"warmup": 1}
    values["select"] |= {"samples": 10, "steps": [1], "metric": "accuracy", "bootstrap": 2}
    values["evaluate"] |= {
        "samples": 20, "steps": [1], "diversity_prompts": 2, "diversity_samples": 2, "timing_samples": 1,
        "bootstrap": 2,
    }  # fmt: skip
    return values


def write_teacher(folder: Path, layers: int) -> None:
    """Write a pipeline whose network has ``layers`` of Wan 1.3B's blocks, with random weights."""
    from rcm_core.pipelines.mini import save_pipeline

    network = MiniTraining(
        layers=layers, heads=12, head_dim=128, ffn_dim=8960, text_dim=64, text_length=12, steps=1, batch=1, lr=0.1,
        ema_length=0.1, condition_dropout=0.0, checkpoint_every=1,
    )  # fmt: skip
    files = [ROOT / f"data/prompts/digits/{part}.txt" for part in ("train", "validation", "test")]
    prompts = [prompt for file in files for prompt in read_prompts(file)]
    save_pipeline(folder, (1, 1, 8, 8), prompts, network, 3.0, seed=0)


def run_measured(stage: str, place: Path) -> None:
    """Run ``stage`` in this process and write its measurements to ``place``."""
    from infra.launch import main as launch
    from rcm_core.networks import weights

    mapped, tensors = 0, weights._tensors

    def counting(*given: Any) -> Iterator[Any]:
        nonlocal mapped
        for name, value in tensors(*given):
            mapped += value.nbytes
            yield name, value

    weights._tensors = counting
    before = _io()
    if launch([stage]):
        sys.exit(1)
    after = _io()
    peak = 1024 * int(_facts("status")["VmHWM"].split()[0])
    read = after["rchar"] - before["rchar"] + mapped
    write_json(place, {"read": read, "written": after["wchar"] - before["wchar"], "peak_memory": peak})


def _io() -> dict[str, int]:
    return {name: int(value) for name, value in _facts("io").items()}


def _facts(name: str) -> dict[str, str]:
    lines = (line.split(":", 1) for line in Path(f"/proc/self/{name}").read_text().splitlines())
    return {key: value.strip() for key, value in lines}


def measure(work: Path, layers: int) -> dict[str, Any]:
    """Measure every stage, and check the limits."""
    source, project = work / "wan", work / "project"
    write_teacher(source, layers)
    project.mkdir()
    (project / "data").symlink_to(ROOT / "data")
    values = settings(yaml.safe_load((ROOT / "params.yaml").read_text()), source)
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    env = os.environ | {
        "RCM_EXECUTOR": "local", "RCM_HOME": str(work / "home"), "RCM_CACHE": str(work / "cache"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
    }  # fmt: skip
    found: dict[str, Any] = {}
    for stage in STAGES:
        place = work / f"{stage}.json"
        command = [sys.executable, "-m", "experiments.engine.storage", CHILD, stage, str(place)]
        subprocess.run(command, cwd=project, env=env, check=True)
        found[stage] = json.loads(place.read_text())
        print(stage, json_text(found[stage]), flush=True)
    size = sum(f.stat().st_size for f in source.rglob("*") if f.is_file())
    count = len(list(RunFolder.of(project).candidates.iterdir()))
    return {"pipeline_bytes": size, "candidates": count, "stages": found, "asked": checks(found, size, count)}


def checks(found: dict[str, Any], size: int, candidates: int) -> dict[str, Any]:
    """Return every check: the measured value, the limit, and whether it is kept."""
    measured = {
        f"{stage}: {what}, share of the pipeline": (found[stage][what] / size, limit)
        for (stage, what), limit in LIMITS.items()
    }
    measured["train: written for each candidate"] = (found["train"]["written"] / candidates / size, CANDIDATE)
    floor = found["report"]["peak_memory"]  # Python and its packages, without a network
    for stage, networks in HELD.items():
        above = found[stage]["peak_memory"] - floor - networks * size
        measured[f"{stage}: GiB of memory above the network and an empty process"] = (
            above / GIB,
            ABOVE / GIB,
        )
    return {
        name: {"measured": round(value, 4), "limit": limit, "kept": value <= limit}
        for name, (value, limit) in measured.items()
    }


def main() -> int:
    """Run the measurement. Exit status 0 if all limits are kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--work", type=Path, help="folder for the teacher and the runs during the measurement"
    )
    parser.add_argument(CHILD, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measured_stage:
        run_measured(given.measured_stage[0], Path(given.measured_stage[1]))
        return 0
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        result = measure(Path(folder), given.layers)
    print(json_text(result))
    if given.json:
        write_json(given.json, result)
    return 0 if all(row["kept"] for row in result["asked"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
