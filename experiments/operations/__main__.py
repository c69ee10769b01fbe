"""A tiny project with real DVC under faults: ``python -m experiments.operations`` writes docs/results/operations.json.

A clone of this repository runs the eight stages; ``dvc push`` to an S3 server (moto), ``dvc pull`` into a second clone
at a path with spaces and letters outside ASCII, where ``dvc repro`` computes nothing; a stage on a full disk; two
queued experiments side by side; a read-only project and a second user (``experiments.operations.users``); S3 faults
and a storm of events behind a real server, worker and Ray (``experiments.operations.served``). Names of sections
(``sync storm``) restrict the run to these; the other results are kept. Everything is in a temporary folder that is
removed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from experiments.operations.s3 import S3
from experiments.operations.served import SERVED
from experiments.operations.tiny import TINY
from experiments.operations.users import USERS
from rcm_core.storage.files import sha256_folder
from rcm_core.storage.run_folder import RunFolder
from tests.support.object_store import BUCKET, CREDENTIALS, object_store

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs/results/operations.json"


class Machine:
    """Runner of commands in one temporary folder."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        python = Path(sys.executable).parent
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RCM_", "PREFECT_", "GIT_", "RAY_"))}
        self.env = kept | CREDENTIALS | {
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}", "RCM_EXECUTOR": "local",
            "RCM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org", "DVC_SITE_CACHE_DIR": str(folder / "site"),
        }  # fmt: skip
        self.endpoint = endpoint

    def run(
        self, project: Path, *command: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([str(project), str(project / "kernels")])
        full = self.env | {"PYTHONPATH": paths} | dict(env or {})
        return subprocess.run(command, cwd=project, env=full, capture_output=True, text=True, check=False)

    def must(self, project: Path, *command: str) -> str:
        answer = self.run(project, *command)
        if answer.returncode:
            raise SystemExit(f"{' '.join(command)}: {answer.stdout[-1500:]}{answer.stderr[-1500:]}")
        return answer.stdout + answer.stderr


def clone(machine: Machine, source: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    machine.must(source, "git", "clone", "-q", str(source), str(place))
    machine.must(place, "dvc", "remote", "add", "--local", "-d", "s3", f"s3://{BUCKET}/store")
    machine.must(place, "dvc", "remote", "modify", "--local", "s3", "endpointurl", machine.endpoint)
    return place


def run_line(machine: Machine, first: Path) -> float:
    """Run all stages and commit dvc.lock; return the seconds of the stages."""
    began = time.monotonic()
    machine.must(first, sys.executable, "-m", "infra.params", *TINY)
    machine.must(first, "dvc", "repro")
    line = time.monotonic() - began
    machine.must(first, "git", "add", "-A")
    machine.must(first, "git", "commit", "-qm", "a tiny run")
    return round(line, 1)


def sync(machine: Machine, first: Path, folder: Path) -> dict[str, Any]:
    """Push, pull into a second clone, and reproduce there."""
    machine.must(first, "dvc", "push")
    second = clone(machine, first, folder / "a second cl\u00f6ne")
    machine.must(second, "dvc", "pull")
    said = machine.must(second, "dvc", "repro")
    status = machine.must(second, "git", "status", "--porcelain")
    return {
        "cache_type": machine.must(first, "dvc", "config", "cache.type").strip(),
        "hard_links_there": sum(
            p.stat().st_nlink > 1 for p in RunFolder.of(second).root.rglob("*") if p.is_file()
        ),
        "stages_run_in_the_second_clone": said.count("Running stage") - said.count("Running stage 'code'"),
        "stages_skipped_there": said.count("didn't change, skipping"),
        "changed_files_there": len(status.splitlines()),
    }


def full_disk(machine: Machine, first: Path, folder: Path) -> dict[str, Any]:
    """Run the trajectories stage with its live state on a file system of 64 KiB, then with space; needs root."""
    small = folder / "small"
    small.mkdir()
    mounted = machine.run(first, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small))
    if mounted.returncode:
        return {"skipped": "a tmpfs needs root"}
    try:
        command = (sys.executable, "-m", "infra.launch", "trajectories")
        answer = machine.run(first, *command, env={"RCM_HOME": str(small)})
        again = machine.run(first, *command)
    finally:
        machine.must(first, "umount", str(small))
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    return {
        "status": answer.returncode,
        "sentence": errors[-1].replace(str(folder), "...") if errors else answer.stderr[-300:],
        "traceback": "Traceback" in answer.stderr,
        "again": again.returncode,
    }


def experiments(machine: Machine, first: Path, folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Queue two experiments and run them at the same time; they differ only in the seed of the training."""
    asked = {f"seed-{seed}": f"train.seed={seed}" for seed in (1, 2)}
    tiny = [argument for override in TINY for argument in ("-S", override)]
    for name, override in asked.items():
        machine.must(first, "dvc", "exp", "run", "--queue", "--name", name, *tiny, "-S", override)
    machine.must(first, "dvc", "exp", "run", "--run-all", "-j", "2")
    listed = machine.must(first, "dvc", "exp", "list", "--name-only").split()
    params, students = {}, set()
    for name in asked:
        machine.must(first, "dvc", "exp", "apply", name)
        params[name] = yaml.safe_load((first / "params.yaml").read_text())
        students.add(sha256_folder(RunFolder.of(first).published / "transformer"))
        params[name]["train"].pop("seed")
    machine.must(first, "git", "checkout", "-q", ".")
    machine.must(first, "dvc", "checkout")
    return {
        "finished": sorted(set(asked) & set(listed)),
        "params_differ_otherwise": params["seed-1"] != params["seed-2"],
        "students": len(students),
        "left_in_the_queue": machine.must(first, "dvc", "queue", "status").count("Queued"),
    }


DVC = {"sync": sync, "full_disk": full_disk, "experiments": experiments}
"""Sections that need a clone with finished stages."""


def on_a_clone(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the sections ``names`` of ``DVC``; yield name and result of each."""
    with object_store() as endpoint, tempfile.TemporaryDirectory(prefix="rcm-operations-") as name:
        folder = Path(name)
        machine = Machine(folder, endpoint)
        first = clone(machine, ROOT, folder / "first")
        line = run_line(machine, first)
        for section in names:
            found = DVC[section](machine, first, folder)
            yield section, found | ({"line_seconds": line} if section == "sync" else {})


def main() -> int:
    """Run the sections named on the command line, or all, and write their results."""
    known = json.loads(OUT.read_text()) if OUT.is_file() else {}
    asked = sys.argv[1:] or [*DVC, *USERS, *SERVED, *S3]
    if unknown := set(asked) - {*DVC, *USERS, *SERVED, *S3}:
        raise SystemExit(f"unknown sections {sorted(unknown)}; choose from {[*DVC, *USERS, *SERVED, *S3]}")
    others = ((n, {**USERS, **SERVED, **S3}[n]()) for n in asked if n not in DVC)
    chosen = [n for n in asked if n in DVC]
    for name, found in chain(on_a_clone(chosen) if chosen else (), others):
        known[name] = found
        OUT.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        print(name, json.dumps(found, indent=2, sort_keys=True), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
