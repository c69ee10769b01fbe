"""Interfaces between stages and the machines they run on: executors, and what a training loop sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class TrainContext(Protocol):
    """What a training loop sees of the cluster."""

    rank: int
    world: int

    def resume(self) -> Path | None:
        """Folder of the newest complete checkpoint of this run, or None."""
        ...

    def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
        """Called by every rank together, maybe in a thread beside the training; ``checkpoint`` is this rank's folder
        (merged over the ranks), complete when the call returns.
        """
        ...

    def leaving(self) -> bool:
        """Whether this rank has been told to leave its machine soon."""
        ...

    def leave(self) -> NoReturn:
        """Ends the loop, by every rank together, after a checkpoint from which it will resume."""
        ...


@dataclass(frozen=True)
class TrainJob:
    """A training as executors run it: ``loop(context, spec)`` on every rank."""

    loop: Callable[[TrainContext, dict[str, Any]], None]
    spec: dict[str, Any]
    """What the loop is told; plain values that can be pickled."""
    state: Path
    """Folder of live state and checkpoints; a job with the same folder resumes."""
    workers: int | range = 1
    """Number of ranks; of a range the most for which there is room."""
    threads: int = 1
    """Threads of each rank."""
    device: str = "cpu"
    max_failures: int = 0
    """How often lost ranks are restarted from the newest checkpoint."""


class Executor(Protocol):
    """Where work runs; infra has one for Ray and one in-process."""

    state_root: Path
    """Below it lies live state (unfinished shards, checkpoints), keyed by fingerprint; outside every stage's outs."""

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        label: str,
        *,
        device: str = "cpu",
    ) -> Iterator[Result]:
        """Results in the order of completion; a lost worker is retried, an exception of ``function`` is raised.

        Each call has one thread, the workspace as its folder and, if ``device`` resolves to cuda, a GPU of its own.
        """
        ...

    def train(self, job: TrainJob) -> None:
        """Run ``job`` to its end, or resume it where a killed process left it; two processes never hold one state."""
        ...
