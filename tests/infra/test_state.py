"""Live state belongs to the main repository and to one process at a time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.state import hold, state_home
from rcm_core.errors import InputError


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_worktree_shares_the_main_repository_s_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RCM_HOME", raising=False)
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init")
    git(main, "commit", "--allow-empty", "-m", "start")
    git(main, "worktree", "add", "--detach", str(tmp_path / "other"))
    assert state_home(tmp_path / "other") == state_home(main) == main / ".rcm"


def test_without_git_the_folder_itself_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCM_HOME", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert state_home(tmp_path) == tmp_path / ".rcm"


def test_a_lock_is_free_again_when_its_holder_is_done(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with hold(state), pytest.raises(InputError, match="in use by process"), hold(state):
        pass
    with hold(state):
        pass
