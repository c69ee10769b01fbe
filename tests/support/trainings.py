"""Trainings in separate processes, and signals to their ranks."""

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
    """A running ``python -m infra.launch train``."""

    workspace: Path
    process: subprocess.Popen[str]
    log: Path
    before: set[Path] = field(init=False)
    """Checkpoints of earlier attempts, which do not count."""

    def __post_init__(self) -> None:
        self.before = self.complete()

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for ``condition`` and return its first true value."""
        return wait_for(what, condition, self.log, self.process)

    def checkpoints(self) -> bool:
        """Return whether two exist: a rank proceeds to the second after Ray has recorded the first."""
        return len(self.complete() - self.before) >= 2

    def complete(self) -> set[Path]:
        """Return the complete checkpoints."""
        state = self.workspace / ".rcm/state"
        return {*state.glob("train-*/step_*/progress.json"), *state.glob("train-*/local/step_*")}

    def end(self) -> str:
        """Wait for a successful end; return the output."""
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        return self.log.read_text()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the training workers below ``process``."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def signal_a_worker(run: Run, rank_count: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to one of the ranks, after a checkpoint."""
    run.wait_for(run.checkpoints, "checkpoint")
    found: list[psutil.Process] = []

    def all_there() -> bool:  # some of an earlier attempt may still run
        found[:] = workers_of(psutil.Process())
        return len(found) == rank_count

    run.wait_for(all_there, f"{rank_count} workers")
    run.before = run.complete()
    os.kill(found[-1].pid, number)


def resumptions(said: str) -> list[int]:
    """Return the steps at which the training resumed."""
    return [int(step) for step in re.findall(r"resumed at step (\d+) of 96", said)]
