"""The executor that needs no cluster: everything in this process, one item after another."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from rcm_kernels.plain import fastest_attention

from infra.executors.preemption import LEFT, notice
from infra.state import hold, state_root
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.execution import Item, Result, TrainJob
from rcm_core.storage.links import place_file

KEPT = 2


class LocalContext:
    """One rank of several that share one ``state``; checkpoints are whole folders ``step_00000010`` below it.

    ``told`` is set when this process gets a preemption notice.
    """

    def __init__(
        self, state: Path, rank: int = 0, world: int = 1, told: threading.Event | None = None
    ) -> None:
        self.state, self.rank, self.world, self._told = state, rank, world, told
        self._group = dist.new_group(backend="gloo") if world > 1 else None

    def resume(self) -> Path | None:
        if self.rank == 0:
            for left in self.state.glob(".step_*"):  # a killed run was writing it
                shutil.rmtree(left)
        self._together()
        steps = self._checkpoints()
        return steps[-1] if steps else None

    def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:  # noqa: ARG002
        if checkpoint is None:
            return
        folder = self.state / f"step_{step:08d}"
        unfinished = folder.with_name(f".{folder.name}")
        for path in checkpoint.rglob("*"):
            if path.is_file():
                place_file(path, unfinished / path.relative_to(checkpoint))
        self._together()
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.replace(folder)
            for old in self._checkpoints()[:-KEPT]:
                shutil.rmtree(old)

    def leaving(self) -> bool:
        return self._told is not None and self._told.is_set()

    def leave(self) -> NoReturn:
        raise SystemExit(LEFT)

    def _together(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.state.glob("step_*"))


class LocalExecutor:
    """``rcm_core.execution.Executor`` in this process (tests, ``RCM_EXECUTOR=local``)."""

    def __init__(self, workspace: Path) -> None:
        self.state_root = state_root(workspace)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        label: str,  # noqa: ARG002
        *,
        device: str = "cpu",
    ) -> Iterator[Result]:
        resolve_device(device)
        for item in items:
            with on_threads(1), fastest_attention():
                result = function(item)
            yield result

    def train(self, job: TrainJob) -> None:
        numbers = numbers_of(job.workers)
        if 1 not in numbers:
            raise InputError(
                f"workers = {numbers[0]}: the local executor has 1; set workers: 1, start {numbers[0]} with torchrun,"
                " or unset RCM_EXECUTOR"
            )
        resolve_device(job.device)
        folder = job.state / "local"
        with (
            hold(job.state),
            on_threads(job.threads),
            _process_group(),
            fastest_attention(),
            notice() as told,
        ):
            folder.mkdir(parents=True, exist_ok=True)
            job.loop(LocalContext(folder, told=told), job.spec)

    def close(self) -> None:
        """Do nothing: this executor holds no resources."""


def numbers_of(workers: int | range) -> range:
    """Return the range of world sizes that a training allows."""
    return range(workers, workers + 1) if isinstance(workers, int) else workers


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Let torch use ``number`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def backend() -> str:
    """Return the backend of process groups on this machine."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@contextmanager
def _process_group() -> Iterator[None]:
    """Open a process group of one rank, so that sharding code runs as on many ranks."""
    if dist.is_initialized():
        yield
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group(backend(), store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
