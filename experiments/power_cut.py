"""A power cut in each of the eight stages: ``python -m experiments.power_cut`` writes docs/results/power_cut.json.

A clone of this repository with small sizes runs all real components: Prefect's server, worker and keeper, Ray, DVC. For
each stage the script starts an unattended run that computes this stage and all later ones. While the stage runs,
SIGKILL ends the server, worker, keeper, flow, Ray and stage at once. Then the script calls ``rcm up``. The run that
continues the dead one must complete within 120 seconds with the outputs of an uninterrupted run. If the uninterrupted
run takes longer (on a busy machine), its time is the limit. Exit status 1 if one run fails this.

Restarted, the script continues after the stages in the result, as long as the code is the same. It takes about 20
minutes on two cores.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import yaml

from experiments.engine.small import RESULTS, ROOT, write_result
from experiments.operations.served import until
from experiments.operations.tiny import TINY
from infra.prefect.api import FINAL, Api
from infra.prefect.pace import STAGES
from infra.prefect.settle import DEPLOYMENT
from infra.state import state_home
from infra.workspace import worktrees
from rcm_core.storage.files import read_json
from tests.support.projects import free_port

NAME = "power_cut"
OVERRIDES = [*TINY, "train.iterations=60", "train.candidate_every=30"]
"""Overrides with more iterations than TINY, because listing all processes takes time while the training continues."""
CODE = ("infra", "flows", "rcm_core", "kernels", "conf", "data", "dvc.yaml", "prefect.yaml")
MARK = "RCM_POWER_CUT"
LIMIT_SECONDS = 120
PATIENCE_SECONDS = 900
KEPT = {
    "teacher": (2, "teacher-*/step_*/progress.json"),
    "trajectories": (1, "trajectories-*/shards/*.safetensors"),
    "train": (2, "train-*/step_*/progress.json"),
}
"""Checkpoints or shards that the stage has written below the live state before the power cut. Ray may not have recorded
the newest checkpoint."""


@dataclass(frozen=True)
class Project:
    """A clone whose processes all carry ``mark`` in their environment."""

    root: Path
    port: int
    mark: str

    @property
    def api(self) -> Api:
        return Api(f"http://127.0.0.1:{self.port}/api")

    def run(self, *command: str) -> str:
        """Return what ``command`` prints; SystemExit with its last lines if it fails."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RCM_", "PREFECT_", "GIT_", "RAY_"))}
        env = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(self.root), str(self.root / "kernels")]),
            "RCM_PREFECT_PORT": str(self.port),
            "RCM_CACHE": str(self.root.parent / "cache"),
            "OMP_NUM_THREADS": "1",
            MARK: self.mark,
        }
        answer = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise SystemExit(f"{' '.join(command[-4:])}: {answer.stdout[-1500:]}{answer.stderr[-1500:]}")
        return answer.stdout

    def rcm(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "infra.cli", *arguments)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def cut_power(self) -> int:
        """Send SIGKILL to all processes until none runs; return their initial number."""
        first = left = self.processes()
        while left:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
            left = self.processes()
        return len(first)

    def owner(self, name: str, stage: str) -> Path:
        """Return the file that exists while ``stage`` of the run ``name`` works, and remains if it is killed."""
        return self.root / f".rcm/locks/{name}-{stage}.owner"

    def list_kept(self, stage: str) -> list[Path]:
        """Return the checkpoints or shards that the unfinished stage has written."""
        return sorted(self.root.glob(f".rcm/state/{KEPT[stage][1]}")) if stage in KEPT else []

    def forget(self, stages: tuple[str, ...]) -> None:
        """Remove ``stages`` from DVC's run cache, so that the next run computes them."""
        for key in self.root.glob(".dvc/cache/runs/*/*"):
            if yaml.safe_load(next(key.iterdir()).read_text())["cmd"].split()[-1] in stages:
                shutil.rmtree(key)

    def outputs(self, name: str) -> dict[str, str]:
        """Return the content hash of every output of the run ``name``, from dvc.lock of its experiment."""
        refs = self.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
        (ref,) = [ref for ref in refs if ref.endswith(f"/{name}")]
        stages = yaml.safe_load(self.run("git", "show", f"{ref}:dvc.lock"))["stages"]
        outs = [out for stage in stages.values() for out in stage["outs"]]
        return {out["path"]: out["md5"] for out in outs}


def code() -> str:
    """Return the digest of the committed code that a run uses."""
    command = ["git", "rev-parse", *(f"HEAD:{name}" for name in CODE)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return hashlib.sha256(answer.stdout.encode()).hexdigest()[:16]


def prepare(project: Project) -> None:
    """Create a clone with small sizes as its newest commit; an existing one loses its server and its runs."""
    if not project.root.exists():
        project.root.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "-q", str(ROOT), str(project.root)], check=True)
        project.run(sys.executable, "-m", "infra.params", *OVERRIDES)
        user = ["-c", "user.name=rcm-distill", "-c", "user.email=rcm-distill@localhost"]
        project.run("git", *user, "commit", "-qam", "small numbers")
    project.rcm("stop")
    shutil.rmtree(project.root / ".rcm", ignore_errors=True)
    project.run("git", "worktree", "prune")


def newest(project: Project, name: str) -> dict[str, Any] | None:
    """Return the newest run that began under ``name``."""
    return next((r for r in project.api.list_runs(DEPLOYMENT) if r["parameters"].get("name") == name), None)


def wait_for_run(project: Project, name: str, dead: str) -> dict[str, Any]:
    """Wait until the run ``name`` that is not ``dead`` has ended; return it."""

    def find_ended() -> dict[str, Any] | None:
        run = newest(project, name)
        return run if run and run["id"] != dead and run["state"]["type"] in FINAL else None

    return dict(until(f"the end of {name}", find_ended, PATIENCE_SECONDS, 1.0))


def seconds(run: dict[str, Any]) -> float:
    began, ended = (datetime.fromisoformat(run[key]) for key in ("start_time", "end_time"))
    return round((ended - began).total_seconds(), 1)


def arrive(project: Project, name: str, stage: str) -> None:
    """Wait until ``stage`` works and has written the files of KEPT, then stop its process."""
    owner = project.owner(name, stage)

    def working() -> bool:
        return owner.exists() and (stage not in KEPT or len(project.list_kept(stage)) >= KEPT[stage][0])

    until(f"{stage} of {name}", working, PATIENCE_SECONDS, 0.005)
    with suppress(FileNotFoundError, IndexError, ProcessLookupError):
        os.kill(int(owner.read_text().split()[1]), signal.SIGSTOP)


def cut(project: Project, stage: str, expected: dict[str, str]) -> dict[str, Any]:
    """Cut the power in ``stage`` of a run, and return how the next run ended."""
    name = f"cut-{stage}-{uuid4().hex[:4]}"
    project.forget(STAGES[STAGES.index(stage) :])
    dead = str(project.api.start(DEPLOYMENT, {"name": name})["id"])
    arrive(project, name, stage)
    processes = project.cut_power()
    inside = project.owner(name, stage).exists()
    kept = len(project.list_kept(stage))
    began = time.monotonic()
    said = project.rcm("up")
    up = time.monotonic() - began
    run = wait_for_run(project, name, dead)
    logs = "\n".join(
        entry["message"] for offset in (0, 200, 400) for entry in project.api.logs(run["id"], offset)
    )
    outputs = project.outputs(name) if run["state"]["type"] == "COMPLETED" else {}
    skipped = [s["name"] for s in project.api.stages(run["id"]) if s["state_name"] == "Skipped"]
    limit = project.api.deployment(DEPLOYMENT)["global_concurrency_limit"]
    return {
        "killed_processes": processes,
        "killed_inside_the_stage": inside,
        "checkpoints_or_shards_left": kept,
        "rcm_up_said": [line for line in said.replace(name, "NAME").splitlines() if line.startswith("run ")],
        "rcm_up_seconds": round(up, 1),
        "dead_run": project.api.run(dead)["state"]["type"],
        "next_run": run["state"]["type"],
        "next_run_seconds": seconds(run) if run["end_time"] else None,
        "resumed_at_step": [int(n) for n in re.findall(r"resumed at step (\d+)", logs)],
        "stages_skipped": len(skipped),
        "equal_student": bool(outputs) and all(outputs[k] == expected[k] for k in expected if "publish" in k),
        "different_outputs": sorted(k for k in expected if outputs.get(k) != expected[k]),
        "slots_taken": limit["active_slots"],
        "worktrees_left": len(worktrees(project.root)),
        "load": round(os.getloadavg()[0], 1),
    }


def is_right(row: dict[str, Any], limit: float) -> bool:
    clean = not row["slots_taken"] and not row["worktrees_left"] and row["killed_inside_the_stage"]
    ended = row["dead_run"] == "CRASHED" and row["next_run"] == "COMPLETED"
    return bool(clean and ended and row["equal_student"] and row["next_run_seconds"] <= limit)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the servers end then, too
    key, place = code(), RESULTS / f"{NAME}.json"
    root = state_home(ROOT) / NAME / key / "project"
    project = Project(root, free_port(), uuid4().hex)
    found = read_json(place, "") if place.is_file() else {}
    found = {k: v for k, v in found.items() if k not in ("machine", "versions")}
    if found.get("code") != key or not root.exists():
        shutil.rmtree(state_home(ROOT) / NAME, ignore_errors=True)
        found = {"code": key, "limit_seconds": LIMIT_SECONDS, "stages": {}}
    prepare(project)
    try:
        project.rcm("up")
        if "uninterrupted" not in found:
            project.forget(STAGES)
            project.api.start(DEPLOYMENT, {"name": "whole"})
            run = wait_for_run(project, "whole", dead="")
            found["uninterrupted"] = {"state": run["state"]["type"], "seconds": seconds(run)}
            write_result(NAME, found)
        expected = {k: v for k, v in project.outputs("whole").items() if not k.endswith("record.json")}
        for stage in [s for s in STAGES if s not in found["stages"]]:
            row = cut(project, stage, expected)
            print(stage, row, flush=True)
            found["stages"][stage] = row
            write_result(NAME, found)
    finally:
        project.rcm("stop")
        project.cut_power()
    limit = max(LIMIT_SECONDS, found["uninterrupted"]["seconds"])
    return 0 if all(is_right(row, limit) for row in found["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
