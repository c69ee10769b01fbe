"""Separate projects for tests: a copy of this one, and a toy with the real flows and infra and instant stages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from infra.params import compose
from infra.prefect.api import Api

REPOSITORY = Path(__file__).parents[2]
MARK = "RCM_TEST_MARK"
COPIED = ("infra", "flows", "rcm_core", "kernels", "conf", "data", ".dvc")
FILES = ("params.yaml", "dvc.yaml", "prefect.yaml", "prefect.toml", ".dvcignore")
ORDER = ("teacher", "prompts", "trajectories", "train", "select", "evaluate", "report", "publish")


def toy_pipeline() -> dict[str, object]:
    """Return dvc.yaml: each stage appends its name to $RCM_HOME/ran and waits while $RCM_HOME/gate-<stage> exists.

    The stage ``code`` is the real one; prompts fails the first time; train runs on Ray.
    """
    pipeline = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    stages: dict[str, object] = {"code": pipeline["stages"]["code"]}
    for number, name in enumerate(ORDER):
        out = f"runs/{name}"
        commands = [f"mkdir -p {out}", f"echo {name} >> $RCM_HOME/ran", f"echo working on {name}"]
        commands.append(f'while [ -e "$RCM_HOME/gate-{name}" ]; do sleep 0.1; done')
        if name == "prompts":
            commands.append('if mkdir "$RCM_HOME/failed-once"; then echo first attempt fails; exit 7; fi')
        if name == "evaluate":
            commands.append(f"cp metrics.json {out}/metrics.json")
        if name == "publish":
            refusal = "echo 'error: the name is refused; choose another'"
            commands.append(f"if grep -q 'name: refused' params.yaml; then {refusal}; exit 2; fi")
        if name == "report":
            commands.append(f"echo '<html>' > {out}/report.html")
        commands.append(f"echo {name} > {out}/out.txt")
        before = [f"runs/code/{name}.json", *([f"runs/{ORDER[number - 1]}"] if number else [])]
        stages[name] = {"cmd": commands, "deps": before, "params": [name], "outs": [out]}
    stages["train"]["cmd"].append("python -m infra.launch train")  # type: ignore[index]
    stages["evaluate"]["deps"].append("metrics.json")  # type: ignore[index]
    return {"stages": stages, "metrics": ["runs/evaluate/metrics.json"]}


TRAIN = '''"""train: hashes its steps for some seconds, on Ray, with ten checkpoints."""
import hashlib
import tempfile
import time
from pathlib import Path


def loop(context, spec):
    folder = context.resume()
    start, digest = (folder / "step").read_text().split() if folder else (0, "")
    start = int(start)
    print(f"starts at step {start}")
    for step in range(start, spec["steps"]):
        time.sleep(spec["seconds"])
        digest = hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
        if (step + 1) % (spec["steps"] // 10) == 0:
            with tempfile.TemporaryDirectory() as checkpoint:
                (Path(checkpoint) / "step").write_text(f"{step + 1} {digest}")
                context.report({}, Path(checkpoint), step + 1)
            print(f"step {step + 1}")
    Path(spec["student"]).write_text(digest)


def run(params, workspace, executor):
    out = workspace / "runs" / "train"
    out.mkdir(parents=True, exist_ok=True)
    spec = {"steps": params.train.iterations, "seconds": 6 / params.train.iterations}
    spec["student"] = str(out / "out.txt")
    state = executor.state_root / "train" / "toy"
    from rcm_core.execution import TrainJob

    executor.train(TrainJob(loop, spec, state=state, max_failures=1))
'''

METRICS = """{
 "protocol": {"hash": "0"},
 "teacher": {"frechet": {"value": 1.5, "low": 1.25, "high": 1.75, "n": 100}},
 "student_1": {"frechet": {"value": 2.0, "low": 1.5, "high": 2.5, "n": 100}}
}
"""


@dataclass(frozen=True)
class Toy:
    """A project with its own Prefect port; all its processes have ``mark`` in their environment."""

    root: Path
    port: int
    mark: str

    @property
    def env(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "RAY_", "RCM_"))
        }
        paths = [str(Path(sys.executable).parent), kept["PATH"]]
        return kept | {
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": os.pathsep.join([str(self.root), str(self.root / "kernels")]),
            "RCM_PREFECT_PORT": str(self.port),
            MARK: self.mark,
        }

    @property
    def api(self) -> Api:
        return Api(f"http://127.0.0.1:{self.port}/api")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the project and return the result."""
        return subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False
        )

    def rcm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "infra.cli", *arguments)

    def ran(self) -> list[str]:
        """Return the stages that have really run, in order."""
        return (self.root / ".rcm" / "ran").read_text().split()

    def processes(self) -> list[str]:
        """Return the command lines of all processes that descend from commands of this project."""
        return [command for _, command in self._processes()]

    def cut_power(self) -> None:
        """Send SIGKILL to all processes at once until none runs."""
        while left := [process for process, _ in self._processes()]:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)

    def kill(self, words: str) -> None:
        """Send SIGKILL to the process whose command line contains ``words``."""
        (process,) = [process for process, command in self._processes() if words in command]
        process.kill()
        process.wait()

    def gate(self, stage: str) -> Path:
        """Return the file that keeps the toy's stage from ending while it exists."""
        return self.root / ".rcm" / f"gate-{stage}"

    def _processes(self) -> list[tuple[psutil.Process, str]]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process, " ".join(process.cmdline())))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def make_toy(root: Path) -> Path:
    """Create a project with instant stages; only train runs a loop, on Ray.

    Its teacher is trained in the project, because an external one is hashed in every run.
    """
    copy_project(root)
    config = root / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("- teacher: mini\n", "- teacher: mini-train\n"))
    compose(root, [])
    (root / "dvc.yaml").write_text(yaml.safe_dump(toy_pipeline(), sort_keys=False))
    (root / "rcm_core" / "stages" / "train.py").write_text(TRAIN)
    (root / "metrics.json").write_text(METRICS)
    commit(root)
    return root


def copy_project(root: Path) -> None:
    """Copy the files of a clone that a run needs to ``root``, without results."""
    root.mkdir(parents=True)
    made = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, root / name, ignore=made)
    for name in FILES:
        shutil.copy2(REPOSITORY / name, root / name)
    (root / ".gitignore").write_text("/runs/\n/.rcm/\n__pycache__/\n")
    (root / ".rcm").mkdir()


def commit(root: Path) -> None:
    """Commit all of ``root`` as the first commit of a git repository."""
    for command in (
        ["init", "-q"],
        ["config", "user.name", "test"],
        ["config", "user.email", "test@example.org"],
        ["add", "-A"],
        ["commit", "-qm", "project"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
