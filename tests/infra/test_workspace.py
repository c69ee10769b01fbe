"""The worktree of a killed run is reused, at whatever point the run was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.workspace import discard, in_use, open_workspace, run_name, worktrees
from rcm_core.errors import InputError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with DVC and one file."""
    monkeypatch.delenv("RCM_HOME", raising=False)
    root = tmp_path / "project"
    root.mkdir()
    (root / "code.py").write_text("one\n")
    (root / ".gitignore").write_text("/.rcm/\n")
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "project"],
    ):
        subprocess.run(command, cwd=root, check=True)
    return root


def test_what_a_killed_run_left_is_put_right_and_its_results_are_kept(project: Path) -> None:
    with open_workspace(project, "night", in_place=False) as space:
        (space.path / "runs").mkdir()
        (space.path / "dvc.lock").write_text("schema: '2.0'\n")
    with open_workspace(project, "night", in_place=False) as space:
        assert (space.path / "runs").is_dir()
        assert (space.path / "dvc.lock").is_file()
    index_lock = project / ".git/worktrees/night/index.lock"
    index_lock.touch()
    (space.path / ".dvc/tmp").mkdir(exist_ok=True)
    (space.path / ".dvc/tmp/rwlock").write_text('{"read": {"runs": [{"pid": 1, "cmd": "dvc repro"}]}}')
    (space.path / "dvc.lock").write_text("schema: '2.0'\nstages: {teacher")
    with open_workspace(project, "night", in_place=False) as space:
        assert (space.path / "runs").is_dir()
        assert not index_lock.exists()
        assert not (space.path / ".dvc/tmp/rwlock").exists()
        assert not (space.path / "dvc.lock").exists()


def test_a_worktree_killed_in_the_making_is_made_again_and_can_be_discarded(project: Path) -> None:
    with open_workspace(project, "night", in_place=False) as space:
        assert in_use(project, "night")
        with pytest.raises(InputError, match="in use by process"):
            discard(project, "night")
    (space.path / "code.py").unlink()
    with open_workspace(project, "night", in_place=False) as space:
        assert (space.path / "code.py").read_text() == "one\n"
    (project / ".git/worktrees/night/HEAD").unlink()
    with open_workspace(project, "night", in_place=False) as space:
        assert (space.path / "code.py").read_text() == "one\n"
    assert worktrees(project) == ["night"]
    discard(project, "night")
    assert worktrees(project) == []
    assert not (project / ".git/worktrees/night").exists()


def test_a_run_without_a_name_has_the_flow_run_s() -> None:
    assert run_name(None, "quirky-hare", "d88beb2a-69fa") == "quirky-hare-d88b"
    assert run_name("night", "quirky-hare", "d88beb2a-69fa") == "night"
