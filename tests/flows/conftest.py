"""A small project with the real flows and infra, and eight stages that take no time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
COPIED = ("infra", "flows", "rcm_core", "kernels", "conf", "data")
FILES = ("params.yaml", "prefect.yaml", "prefect.toml", ".dvcignore")
ORDER = ("teacher", "prompts", "trajectories", "train", "select", "evaluate", "report", "publish")


def toy_pipeline() -> dict[str, object]:
    """Each stage notes in $RCM_HOME/ran that it ran; prompts fails the first time; train is on Ray."""
    stages: dict[str, object] = {}
    for number, name in enumerate(ORDER):
        out = f"runs/{name}"
        commands = [f"mkdir -p {out}", f"echo {name} >> $RCM_HOME/ran", f"echo working on {name}"]
        if name == "prompts":
            commands.append('if mkdir "$RCM_HOME/failed-once"; then echo first attempt fails; exit 7; fi')
        if name == "evaluate":
            commands.append(f"cp metrics.json {out}/metrics.json")
        if name == "report":
            commands.append(f"echo '<html>' > {out}/report.html")
        commands.append(f"echo {name} > {out}/out.txt")
        before = [f"runs/{ORDER[number - 1]}"] if number else []
        stages[name] = {"cmd": commands, "deps": before, "params": [name], "outs": [out]}
    stages["train"]["cmd"].append("python -m infra.launch train")  # type: ignore[index]
    stages["evaluate"]["deps"].append("metrics.json")  # type: ignore[index]
    return {"stages": stages, "metrics": ["runs/evaluate/metrics.json"]}


TRAIN = '''"""train: counts, on Ray, with a checkpoint every ten steps."""
import tempfile
import time
from pathlib import Path


def loop(context, spec):
    folder = context.resume()
    start = int((folder / "step").read_text()) if folder else 0
    print(f"starts at step {start}")
    for step in range(start, spec["steps"]):
        time.sleep(spec["seconds"])
        if (step + 1) % 10 == 0:
            with tempfile.TemporaryDirectory() as checkpoint:
                (Path(checkpoint) / "step").write_text(str(step + 1))
                context.report({}, Path(checkpoint), step + 1)
            print(f"step {step + 1}")


def run(params, workspace, executor):
    spec = {"steps": params.train.iterations, "seconds": 0.01}
    state = executor.state_root / "train" / "toy"
    executor.train(loop, spec, state=state, workers=1, threads=1, device="cpu", max_failures=1)
    out = workspace / "runs" / "train"
    out.mkdir(parents=True, exist_ok=True)
    (out / "out.txt").write_text("train")
'''

METRICS = """{
 "protocol": {"hash": "0"},
 "teacher": {"frechet": {"value": 1.5, "low": 1.25, "high": 1.75, "n": 100}},
 "student_1": {"frechet": {"value": 2.0, "low": 1.5, "high": 2.5, "n": 100}}
}
"""


@pytest.fixture(scope="session")
def toy_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of its own; its live state is in ``.rcm`` as anyone's is."""
    root = tmp_path_factory.mktemp("toy") / "project"
    return make_toy(root)


def make_toy(root: Path) -> Path:
    root.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy2(REPOSITORY / name, root / name)
    shutil.copytree(
        REPOSITORY / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local")
    )
    (root / "dvc.yaml").write_text(yaml.safe_dump(toy_pipeline(), sort_keys=False))
    (root / "rcm_core" / "stages" / "train.py").write_text(TRAIN)
    (root / "metrics.json").write_text(METRICS)
    (root / ".gitignore").write_text("/runs/\n/.rcm/\n__pycache__/\n")
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "toy"],
        ["config", "user.name", "test"],
        ["config", "user.email", "test@example.org"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    (root / ".rcm").mkdir()
    return root
