"""Shared machines: a read-only project, and two users on one machine (needs root)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.operations.served import restart, until
from infra.prefect.api import FINAL
from infra.prefect.settle import DEPLOYMENT
from tests.support.projects import Toy, free_port, make_toy

USER = "rcm-second"
STAGE = [sys.executable, "-m", "infra.launch", "prompts"]


def read_only() -> dict[str, Any]:
    """Run commands in a project on a read-only mount; needs root."""
    with tempfile.TemporaryDirectory(prefix="rcm-read-only-") as name:
        root = make_toy(Path(name) / "project")
        toy = Toy(root, free_port(), name)
        commands = {
            "stage": STAGE,
            "up": ["rcm", "up"],
            "distill": ["rcm", "distill"],
            "doctor": ["rcm", "doctor"],
        }
        subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True)
        try:
            return {title: answer_of(toy.run(*command), root) for title, command in commands.items()}
        finally:
            subprocess.run(["umount", str(root)], check=True)


def answer_of(answer: subprocess.CompletedProcess[str], root: Path) -> dict[str, Any]:
    """Return exit status and message of a command."""
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    return {
        "status": answer.returncode,
        "sentence": errors[-1].replace(str(root), "...") if errors else "",
        "lines": len(answer.stderr.strip().splitlines()),
        "traceback": "Traceback" in answer.stderr,
    }


@contextmanager
def second_user(folder: Path) -> Iterator[tuple[Callable[..., subprocess.CompletedProcess[str]], Toy]]:
    """Create a user with its own project; yield how it runs commands, and the project. Removes the user afterwards."""
    home = folder / "second"
    subprocess.run(["useradd", "--create-home", "--home-dir", str(home), USER], check=True)
    try:
        toy = Toy(make_toy(home / "project"), free_port(), str(home))
        user = pwd.getpwnam(USER)
        for path in [home, *home.rglob("*")]:
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)

        as_user = [
            "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
            "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
        ]  # fmt: skip

        def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
            """Run as the user, who may read everything (Python is in a private home) but write only its own files."""
            env = toy.env | {"HOME": str(home), "USER": USER} | more
            return subprocess.run(
                [*as_user, *command], cwd=toy.root, env=env, capture_output=True, text=True, check=False
            )

        yield run, toy
        run(sys.executable, "-m", "infra.cli", "stop")
    finally:
        subprocess.run(["userdel", USER], check=True)
        shutil.rmtree(home, ignore_errors=True)


def users() -> dict[str, Any]:
    """Run servers, workers and Rays of two users at once; the second gets an error that the first's port is in use."""
    with tempfile.TemporaryDirectory(prefix="rcm-users-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        first = Toy(make_toy(folder / "first"), free_port(), name)
        rcm = [sys.executable, "-m", "infra.cli"]
        try:
            with restart(first), second_user(folder) as (run, second):
                taken = answer_of(run(*rcm, "up", RCM_PREFECT_PORT=str(first.port)), folder)
                up = run(*rcm, "up")
                if up.returncode:
                    return {"taken_port": taken, "second_up": answer_of(up, folder), "log": up.stderr[-800:]}
                runs = [toy.api.start(DEPLOYMENT, {}) for toy in (first, second)]
                states = [
                    wait_for_end(toy, run["id"]) for toy, run in zip((first, second), runs, strict=True)
                ]
                return {"taken_port": taken, "runs_at_the_same_time": states, "ray_folder": mode("/tmp/ray")}
        finally:
            first.rcm("stop")


def wait_for_end(toy: Toy, run: str) -> str:
    """Wait for the end of the run; return its final state."""
    until("the run ends", lambda: toy.api.run(run)["state"]["type"] in FINAL)
    return str(toy.api.run(run)["state"]["type"])


def mode(path: str) -> str:
    """Return the permissions of ``path``."""
    return oct(os.stat(path).st_mode & 0o7777) if os.path.exists(path) else "none"


USERS = {"read_only": read_only, "users": users}
