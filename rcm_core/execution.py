"""Interfaces between stages and the machines they run on: executors, and the context of a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class TrainContext(Protocol):
    """The cluster as a training loop sees it."""

    rank: int
    world: int

    def resume(self) -> Path | None:
        """Return the folder of the newest complete checkpoint of this run, or None."""
        ...

    def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
        """Report scalars and this rank's ``checkpoint`` folder. All ranks call it together, possibly in another thread.

        The folders of all ranks are merged; the checkpoint is complete when the call returns.
        """
        ...

    def leaving(self) -> bool:
        """Return whether this rank has received a preemption notice."""
        ...

    def leave(self) -> NoReturn:
        """End the loop after a checkpoint from which it will resume. All ranks call it together."""
        ...


@dataclass(frozen=True)
class TrainJob:
    """A training as executors run it: ``loop(context, spec)`` on every rank."""

    loop: Callable[[TrainContext, dict[str, Any]], None]
    spec: dict[str, Any]
    """Arguments of the loop; plain values that can be pickled."""
    state: Path
    """Folder of live state and checkpoints; a job with the same folder resumes."""
    workers: int | range = 1
    """Number of ranks; a range means the most for which the cluster has room."""
    threads: int = 1
    """Threads per rank."""
    device: str = "cpu"
    max_failures: int = 0
    """Largest number of restarts from the newest checkpoint after a rank is lost."""


class Executor(Protocol):
    """Runs stages' work on machines; the implementations (in-process, Ray, ...) are in infra."""

    state_root: Path
    """Root folder of live state (unfinished shards, checkpoints), keyed by fingerprint; outside every stage's outs."""

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        label: str,
        *,
        device: str = "cpu",
    ) -> Iterator[Result]:
        """Yield results in the order of completion. A lost worker is retried; an exception of ``function`` is raised.

        Each call runs in the workspace folder with one thread and, if ``device`` resolves to cuda, its own GPU.
        """
        ...

    def train(self, job: TrainJob) -> None:
        """Run ``job`` to its end, or resume it where a killed process stopped; two processes never hold one state."""
        ...
