"""Where live state is kept (checkpoints, servers' data, worktrees), and who holds it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rcm_core.errors import InputError


def main_root(workspace: Path) -> Path:
    """The project's root; for a git worktree, the root of the repository that it belongs to."""
    answer = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        return workspace.absolute()
    return Path(answer.stdout.strip()).parent


def state_home(workspace: Path) -> Path:
    """``RCM_HOME``, or ``.rcm`` in the main repository: outside every DVC output, shared by worktrees."""
    given = os.environ.get("RCM_HOME")
    return Path(given).absolute() if given else main_root(workspace) / ".rcm"


def state_root(workspace: Path) -> Path:
    """Where stages keep unfinished shards and checkpoints, each below a fingerprint of its inputs."""
    return state_home(workspace) / "state"


@contextmanager
def held(state: Path) -> Iterator[None]:
    """Holds ``state`` for this process alone; InputError names the process that has it."""
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
