"""Runs in unusual checkouts: odd paths, shallow clones, detached heads, submodules, no git user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.state import main_root, state_home
from infra.workspace import Workspace, dvc, finish, open_workspace
from rcm_core.errors import InputError

STAGE = {"cmd": "mkdir -p runs && echo made > runs/out.txt", "outs": ["runs/out.txt"]}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one stage and two commits of another author; git has no user here."""
    for name in list(os.environ):
        if name.startswith(("GIT_", "EMAIL", "RCM_")):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"report": STAGE}}))
    (folder / ".gitignore").write_text("/runs/\n/.rcm/\n")
    author = ["-c", "user.name=other", "-c", "user.email=other@example.org"]
    git(folder, "add", "-A")
    git(folder, *author, "commit", "-qm", "project")
    git(folder, *author, "commit", "-qm", "again", "--allow-empty")
    return folder


def test_a_run_in_a_worktree_ends_as_an_experiment(origin: Path, tmp_path: Path) -> None:
    """The checkout is a shallow clone with a detached head, at a path with spaces and non-ASCII letters."""
    project = tmp_path / "a place" / "ünï cödé"
    project.parent.mkdir()
    git(project.parent, "clone", "-q", "--depth", "1", f"file://{origin}", project.name)
    git(project, "checkout", "-q", "--detach")
    assert state_home(project) == project / ".rcm"
    with open_workspace(project, "run-1", in_place=False) as space:
        assert space.path == project / ".rcm/worktrees/run-1"
        assert main_root(space.path) == project
        dvc(space, "repro")
        assert (space.path / "runs/out.txt").read_text() == "made\n"
        finish(space)
    assert "run-1" in git(project, "for-each-ref", "refs/exps")
    assert git(project, "worktree", "list").count("\n") == 0
    assert git(project, "status", "--porcelain") == ""
    assert [p.name for p in (project / ".rcm/worktrees").iterdir() if p.is_dir()] == []
    dvc(Workspace(project, project, ""), "exp", "apply", "run-1")  # from the project's own cache
    assert (project / "runs/out.txt").read_text() == "made\n"


def test_a_submodule_keeps_its_own_state_and_runs_in_place_alone(origin: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "submodule", "--quiet", "add", str(origin), "distil")
    project = outer / "distil"
    assert main_root(project) == project
    assert state_home(project) == project / ".rcm"
    with (
        pytest.raises(InputError, match="is a git submodule"),
        open_workspace(project, "run-1", in_place=False),
    ):
        pass
    assert not (project / ".rcm").exists()
    with open_workspace(project, "run-1", in_place=True) as space:
        dvc(space, "repro")
    assert (project / "runs/out.txt").read_text() == "made\n"
    git(project, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    assert main_root(tmp_path / "tree") == project
