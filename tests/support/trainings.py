"""Trainings in processes of their own, and signals to their ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from workspaces import PATIENCE, wait_for


@dataclass
class Run:
    """``python -m infra.launch train``, resumed."""

    workspace: Path
    process: subprocess.Popen[str]
    log: Path
    before: set[Path] = field(init=False)
    """Checkpoints that count no more."""

    def __post_init__(self) -> None:
        self.before = self.complete()

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Its first true value."""
        return wait_for(what, condition, self.log, self.process)

    def checkpoints(self) -> bool:
        """Whether it has made two: a rank proceeds to the second when Ray has taken note of the first."""
        return len(self.complete() - self.before) >= 2

    def complete(self) -> set[Path]:
        """Checkpoints that lie there."""
        state = self.workspace / ".rcm/state"
        return {*state.glob("train-*/step_*/progress.json"), *state.glob("train-*/local/step_*")}

    def end(self) -> str:
        """What it said; it must have ended well by itself."""
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        return self.log.read_text()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Training workers below ``process``."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def signal_a_worker(run: Run, rank_count: int, number: int = signal.SIGKILL) -> None:
    """A signal to one of the ranks, after a checkpoint."""
    run.wait_for(run.checkpoints, "checkpoint")
    found: list[psutil.Process] = []

    def all_there() -> bool:  # of an earlier attempt some may still be going
        found[:] = workers_of(psutil.Process())
        return len(found) == rank_count

    run.wait_for(all_there, f"{rank_count} workers")
    run.before = run.complete()
    os.kill(found[-1].pid, number)


def resumptions(said: str) -> list[int]:
    """The steps at which it resumed."""
    return [int(step) for step in re.findall(r"resumed at step (\d+) of 96", said)]
