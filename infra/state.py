"""Location and locks of the live state: checkpoints, servers' data, worktrees."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rcm_core.errors import InputError


def main_root(workspace: Path) -> Path:
    """Return the project's root; for a git worktree, the root of its repository.

    A submodule is its own repository: its git folder is inside the parent repository, its root is not.
    """
    command = [
        "git",
        "rev-parse",
        "--path-format=absolute",
        "--git-dir",
        "--git-common-dir",
        "--show-toplevel",
    ]
    answer = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    if answer.returncode:
        return workspace.absolute()
    own, common, top = (Path(line) for line in answer.stdout.splitlines())
    if own == common:
        return top
    if common.name == ".git":
        return common.parent
    # a worktree of a submodule: the git folder names the submodule's own checkout
    named = subprocess.run(
        ["git", "config", "--file", str(common / "config"), "core.worktree"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return (common / named.stdout.strip()).resolve() if named.returncode == 0 else common


def state_home(workspace: Path) -> Path:
    """Return ``RCM_HOME``, or ``.rcm`` in the main repository: outside all DVC outputs, shared by worktrees."""
    given = os.environ.get("RCM_HOME")
    return Path(given).absolute() if given else main_root(workspace) / ".rcm"


def state_root(workspace: Path) -> Path:
    """Return the folder of unfinished shards and checkpoints, each below the fingerprint of its inputs."""
    return state_home(workspace) / "state"


@contextmanager
def hold(state: Path) -> Iterator[None]:
    """Lock ``state`` for this process; InputError names the process that holds it."""
    state.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state.with_name(f"{state.name}.lock"))
    owner = state.with_name(f"{state.name}.owner")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        who = owner.read_text() if owner.exists() else "another process"
        raise InputError(f"{state} is in use by {who}; wait until it ends, or stop it") from error
    try:
        owner.write_text(f"process {os.getpid()} in {Path.cwd()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
