"""Working folder of a run: the project itself, or its own git worktree that shares DVC's cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from infra.state import hold, state_home
from rcm_core.errors import InputError
from rcm_core.storage.run_folder import RunFolder

OURS = {"NAME": "rcm-distill", "EMAIL": "rcm-distill@localhost"}


@dataclass(frozen=True)
class Workspace:
    """A checkout that one run uses exclusively."""

    root: Path
    """Root of the project."""
    path: Path
    """Folder in which the stages run: ``root``, or a worktree of it."""
    name: str

    @property
    def own(self) -> bool:
        return self.path != self.root

    @property
    def report(self) -> Path:
        """Return the path of the report after the run has ended."""
        if self.own:
            return state_home(self.root) / "reports" / f"{self.name}.html"
        return RunFolder.of(self.path).report


def run_name(given: str | None, flow_run: str, identity: str) -> str:
    """Return the name of a run and its worktree: ``given``, else the flow run's name and 4 characters of its id."""
    return given or f"{flow_run}-{identity[:4]}"


def worktrees(root: Path) -> list[str]:
    """Return the names of the runs that have a worktree, in use or left behind."""
    return sorted(p.name for p in (state_home(root) / "worktrees").glob("*") if p.is_dir())


def in_use(root: Path, name: str) -> bool:
    """Return whether a process holds the worktree ``name``."""
    try:
        with hold(state_home(root) / "worktrees" / name):
            return False
    except InputError:
        return True


def discard(root: Path, name: str) -> None:
    """Remove the worktree ``name``; InputError if a process holds it. Checkpoints and DVC's cache stay."""
    path = state_home(root) / "worktrees" / name
    with hold(path):
        _remove_worktree(root, path)


@contextmanager
def open_workspace(root: Path, name: str, in_place: bool) -> Iterator[Workspace]:
    """Open and lock the workspace of run ``name``; the worktree of a failed run is reused."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"run name {name!r}: expected letters, digits, dot, dash, underscore, as in nightly-3"
        )
    if in_place:
        with hold(state_home(root) / "locks" / "workspace"):
            yield Workspace(root, root, name)
        return
    if _git(root, "rev-parse", "--show-superproject-working-tree").strip():
        raise InputError(
            f"{root} is a git submodule, and DVC finds no repository from a submodule's worktree; clone the project"
            " separately, or run it in place (in_place, as `rcm distill` does)"
        )
    path = state_home(root) / "worktrees" / name
    with hold(path):
        _add_worktree(root, path)
        yield Workspace(root, path, name)


def finish(space: Workspace) -> None:
    """Save the report of a run in a worktree, and the run as a DVC experiment."""
    if not space.own:
        return
    report = RunFolder.of(space.path).report
    if report.is_file():
        space.report.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(report, space.report)
    dvc(space, "exp", "save", "--force", "--name", space.name)
    _git(space.root, "worktree", "remove", "--force", str(space.path))


def environment(space: Workspace, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for commands in ``space``: our Python first on PATH, its packages, unbuffered output."""
    ours = [str(space.path), str(space.path / "kernels")]
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(ours),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "RCM_HOME": str(state_home(space.root)),
        **_identity(space.root),
        **extra,
    }


def _identity(root: Path) -> dict[str, str]:
    """Return the author of `dvc exp save` commits: git's user, or our own name where git has none and would fail."""
    found = subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], cwd=root, capture_output=True, check=False)
    if found.returncode == 0:
        return {}
    return {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in OURS.items()}


def dvc(space: Workspace, *arguments: str) -> str:
    """Return the output of a DVC command in ``space``; RuntimeError with that output if it fails."""
    return _run([sys.executable, "-m", "dvc", *arguments], space.path, environment(space, {}))


def _remove_worktree(root: Path, path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    _git(root, "worktree", "prune", "--expire", "now")


def _unlock(path: Path) -> None:
    """Remove the git and DVC locks that a killed process left in the worktree, and a truncated dvc.lock.

    No other process works there, because the caller holds the worktree. DVC's run cache repeats dvc.lock's content.
    """
    Path(_git(path, "rev-parse", "--path-format=absolute", "--git-path", "index.lock").strip()).unlink(
        missing_ok=True
    )
    (path / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
    try:
        whole = isinstance(yaml.safe_load((path / "dvc.lock").read_text()), dict)
    except FileNotFoundError:
        return
    except (yaml.YAMLError, UnicodeDecodeError):
        whole = False
    if not whole:
        (path / "dvc.lock").unlink()


def _is_whole(path: Path) -> bool:
    """Return whether git knows the worktree and no tracked file is missing (its creation may have been killed)."""
    try:
        _unlock(path)
        changes = _git(path, "status", "--porcelain", "--untracked-files=no").splitlines()
    except RuntimeError:
        return False
    return not any("D" in line[:2] for line in changes)


def _add_worktree(root: Path, path: Path) -> None:
    if path.exists() and not _is_whole(path):
        _remove_worktree(root, path)
    if not path.exists():
        _git(root, "worktree", "prune")
        _git(root, "worktree", "add", "--detach", str(path), "HEAD")
    local = root / ".dvc" / "config.local"
    if local.is_file():
        shutil.copy2(local, path / ".dvc" / "config.local")
    main = Workspace(root, root, "")
    cache = dvc(main, "cache", "dir").strip()
    # Relative to the command's folder: DVC cannot write non-ASCII letters, and the project's path may have some.
    dvc(Workspace(root, path, ""), "config", "--local", "cache.dir", os.path.relpath(cache, path))


def _git(root: Path, *arguments: str) -> str:
    return _run(["git", *arguments], root, dict(os.environ))


def _run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    answer = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = (answer.stderr or answer.stdout).strip()
        raise RuntimeError(f"`{' '.join(command[-5:])}` failed in {folder}: {said}")
    return answer.stdout
