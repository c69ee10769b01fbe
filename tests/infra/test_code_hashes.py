"""The stage ``code`` in real DVC: the pipeline of dvc.yaml with commands that only hash their dependencies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from projects import ORDER, REPOSITORY, commit, copy_project
from workspaces import PATIENCE

from infra.code_hashes import write_hashes
from infra.params import compose
from infra.workspace import Workspace, dvc, finish, open_workspace
from rcm_core.code_hash import code_hashes
from rcm_core.errors import InputError

WORK = """
import hashlib, os, pathlib, sys
stage, params, deps, outs = [part.split(",") for part in sys.argv[1:]]
with open(os.environ["RAN"], "a") as ran:
    print(*stage, file=ran)
digest = hashlib.sha256("".join(params).encode())
for dep in map(pathlib.Path, deps):
    for file in sorted(dep.rglob("*")) if dep.is_dir() else [dep]:
        digest.update(file.read_bytes())
for out in map(pathlib.Path, outs):
    file = out if out.suffix else out / "file"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{out} {digest.hexdigest()}")
"""
BELOW_TRAIN = list(ORDER[ORDER.index("train") :])
Dvc = Callable[..., str]


def imitation() -> dict[str, object]:
    """Return dvc.yaml with the same stages, deps and outs; each output depends on all inputs of its stage."""
    pipeline = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    for name, stage in pipeline["stages"].items():
        if name != "code":
            section = "${method.name}${train.batch}" if name == "train" else "none"
            outs = [*stage["outs"], *stage.get("metrics", [])]
            parts = [name, section, ",".join(stage["deps"]), ",".join(outs)]
            stage["cmd"] = "python work.py " + " ".join(f'"{part}"' for part in parts)
    return {"stages": pipeline["stages"]}


def in_project(root: Path, *arguments: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RCM_", "GIT_"))}
    env |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")]),
        "RAN": str(root / ".rcm/ran"),
        "DVC_NO_ANALYTICS": "1",
    }
    (root / ".rcm").mkdir(exist_ok=True)
    (root / ".rcm/ran").write_text("")
    command = [sys.executable, "-m", "dvc", *arguments]
    ended = subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def ran(root: Path, *arguments: str) -> list[str]:
    """Return the stages, except ``code``, that a DVC command in ``root`` ran."""
    in_project(root, *arguments)
    return (root / ".rcm/ran").read_text().split()


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def edit(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a remote in which all stages have run and everything is committed."""
    root = tmp_path_factory.mktemp("code") / "project"
    copy_project(root)
    compose(root, [])
    (root / "work.py").write_text(WORK)
    (root / "dvc.yaml").write_text(yaml.safe_dump(imitation(), sort_keys=False))
    commit(root)
    assert sorted(ran(root, "repro")) == sorted(ORDER)
    in_project(root, "remote", "add", "-d", "store", str(root.parent / "store"))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "run")
    return root


@pytest.fixture
def project(finished: Path) -> Path:
    """An unchanged copy of ``finished``."""
    git(finished, "checkout", "-q", ".")
    git(finished, "clean", "-qfd")
    return finished


def test_what_is_no_code_of_the_run_reruns_nothing(project: Path) -> None:
    """Changes: a docstring and a comment in an import of train, another method, a moved module, none."""
    lock = (project / "dvc.lock").read_bytes()
    edit(project, "rcm_core/methods/rcm.py", '"""', '"""Another sentence. ')
    edit(project, "rcm_core/diffusion/trigflow.py", "\nimport ", "\n# why\nimport ")
    (project / "rcm_core/methods/scm.py").write_text("X = 1\n")
    (project / "rcm_core/rng.py").rename(project / "rcm_core/randomness.py")
    for file in (project / "rcm_core").rglob("*.py"):
        text = file.read_text()
        if "rcm_core.rng" in text:
            file.write_text(text.replace("from rcm_core.rng import", "from rcm_core.randomness import"))
    assert ran(project, "repro") == []
    assert (project / "dvc.lock").read_bytes() == lock
    git(project, "checkout", "-q", ".")
    git(project, "clean", "-qfd")
    assert ran(project, "repro") == []
    assert git(project, "status", "--porcelain") == ""


def test_an_edit_of_the_method_reruns_training_and_what_follows(project: Path) -> None:
    with (project / "rcm_core/methods/rcm.py").open("a") as file:
        file.write("\nADDED = 1\n")
    assert ran(project, "repro") == BELOW_TRAIN
    git(project, "checkout", "-q", ".")
    assert ran(project, "repro") == []  # from DVC's cache of runs


def test_another_method_reruns_training_and_what_follows(project: Path) -> None:
    """This also holds for an experiment in a separate folder, as the queue runs it, that is applied afterwards."""
    assert ran(project, "exp", "run", "--temp", "--name", "other", "-S", "method=scm") == BELOW_TRAIN
    assert git(project, "status", "--porcelain") == ""
    in_project(project, "exp", "apply", "other")
    assert yaml.safe_load((project / "params.yaml").read_text())["method"]["name"] == "scm"
    assert ran(project, "repro") == []


def test_a_single_stage_after_the_code_as_the_flow_runs_it(project: Path) -> None:
    with (project / "rcm_core/methods/rcm.py").open("a") as file:
        file.write("\nADDED = 2\n")
    shutil.rmtree(project / "runs/code")
    assert ran(project, "repro", "--single-item", "code", "prompts") == []
    assert ran(project, "repro", "--single-item", "code", "train") == ["train"]


def test_a_second_clone_computes_nothing(project: Path) -> None:
    in_project(project, "push")
    clone = project.parent / "clone"
    git(project.parent, "clone", "-q", str(project), str(clone))
    in_project(clone, "pull")
    assert ran(clone, "repro") == []
    assert git(clone, "status", "--porcelain") == ""


def test_a_worktree_computes_nothing_and_ends_as_an_experiment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAN", str(project / ".rcm/ran"))
    (project / ".rcm/ran").write_text("")
    with open_workspace(project, "run-1", in_place=False) as space:
        dvc(space, "checkout")
        dvc(space, "repro", "--single-item", "code", "train")
        assert json.loads((space.path / "runs/code/train.json").read_text())
        finish(space)
    assert (project / ".rcm/ran").read_text() == ""
    assert dvc(Workspace(project, project, ""), "exp", "list", "--name-only").split() != []


def test_hashes_are_those_of_the_closure_and_unchanged_files_are_left_alone(tmp_path: Path) -> None:
    shutil.copy2(REPOSITORY / "params.yaml", tmp_path)
    write_hashes(tmp_path)
    folder = tmp_path / "runs/code"
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    chosen = {"methods": "rcm", "models": "wan", "benchmarks": "digits"}
    for stage in ORDER:
        assert found[stage] == sorted(code_hashes(f"rcm_core.stages.{stage}", chosen).values())
        assert set(found[stage]) <= set(found["modules"].values())
    before = {path: path.stat() for path in folder.iterdir()}
    write_hashes(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == {p: s.st_mtime_ns for p, s in before.items()}


@pytest.mark.parametrize("text", ["method: {}\nteacher: {}\n", "[]\n", "method: {name: 3}\n"])
def test_params_without_the_choices_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params.yaml has method.name = .*, expected a name; recompose it"):
        write_hashes(tmp_path)
    assert not (tmp_path / "runs").exists()


def test_it_is_quick_because_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "pydantic", "numpy", "pandas", "diffusers", "dvc", "ray")
    program = f"import sys, infra.code_hashes; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
